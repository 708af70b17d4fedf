/* SPDX-License-Identifier: Apache-2.0
 *
 * Failing with a reason: one thread-local record, filled where the mistake is known and read by the binding. */
#ifndef FBX_ERROR_H
#define FBX_ERROR_H
#include "fabrex.h"

/* Record the failure and return `code`. The text says what was wrong with which value. */
int fbxi_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a refused system call: appends errno's text. */
int fbxi_fail_system(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Attach the operation's address, node and kind to the record. */
int fbxi_fail_at(int code, int op, int node, uint64_t gva, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* Make an earlier record the last one again: for who reports later than it failed. */
void fbxi_fail_again(const struct fbx_error *record);
#endif
