# SPDX-License-Identifier: Apache-2.0
# How the C core is compiled, for every build of it: the Makefile includes this file and setup.py reads it, so that the Python
# extension, libfabrex and the C tests can never be built differently. Only plain `NAME = value` lines.
CORE_CFLAGS = -std=gnu11 -D_GNU_SOURCE -O2 -g -fPIC -fvisibility=hidden -pthread -Wall -Wextra
CORE_LDLIBS = -pthread
