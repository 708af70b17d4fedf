# SPDX-License-Identifier: Apache-2.0
"""Programs under the virtual clock."""
