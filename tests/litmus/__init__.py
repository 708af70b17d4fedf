# SPDX-License-Identifier: Apache-2.0
"""The litmus suite: what each ordering rule allows, as programs."""
