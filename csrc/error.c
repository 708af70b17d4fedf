/* SPDX-License-Identifier: Apache-2.0
 *
 * The error record and the texts of the one error table in fabrex.h. Never prints. */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local struct fbx_error last;

const struct fbx_error *fbx_last_error(void) { return &last; }

const char *fbx_error_name(int code)
{
    switch (code) {
    case 0: return "OK";
#define FBX_X(number, name, hint)                                                                                      \
    case number: return #name;
        FBX_ERRORS(FBX_X)
#undef FBX_X
    default: return NULL;
    }
}

const char *fbx_error_hint(int code)
{
    switch (code) {
#define FBX_X(number, name, hint)                                                                                      \
    case number: return hint;
        FBX_ERRORS(FBX_X)
#undef FBX_X
    default: return "";
    }
}

static int fail(int code, int op, int node, uint64_t gva, int system, const char *format, va_list arguments)
{
    last = (struct fbx_error){.code = code, .op = op, .node = node, .gva = gva, .system_errno = system};
    int used = vsnprintf(last.text, sizeof last.text, format, arguments);
    if (system && used >= 0 && (size_t)used < sizeof last.text) {
        char reason[96];
        /* The GNU form returns the text, which may or may not be in the buffer. */
        snprintf(last.text + used, sizeof last.text - (size_t)used, ": %s",
                 strerror_r(system, reason, sizeof reason));
    }
    return code;
}

int fbxi_fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fail(code, -1, -1, 0, 0, format, arguments);
    va_end(arguments);
    return code;
}

int fbxi_fail_system(int code, const char *format, ...)
{
    int system = errno;
    va_list arguments;
    va_start(arguments, format);
    fail(code, -1, -1, 0, system, format, arguments);
    va_end(arguments);
    return code;
}

int fbxi_fail_at(int code, int op, int node, uint64_t gva, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fail(code, op, node, gva, 0, format, arguments);
    va_end(arguments);
    return code;
}

void fbxi_fail_again(const struct fbx_error *record) { last = *record; }
