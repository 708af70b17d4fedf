# SPDX-License-Identifier: Apache-2.0
"""The bug museum: real bugs of fabric software, each failing and mended."""
