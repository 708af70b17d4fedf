/* SPDX-License-Identifier: Apache-2.0
 *
 * The trace: what happened, one record of fixed size each, in the order in which this process made it happen. Off, a record
 * costs one branch that is predicted. It knows nothing of what the records mean.
 */
#ifndef FBX_TRACE_H
#define FBX_TRACE_H
#include "internal.h"

/* The public record (fabrex.h) is the internal one: nothing is copied twice. */
#define fbxi_trace_record fbx_trace_record

static inline bool fbxi_tracing(const fbx_fabric *f) { return __builtin_expect(f->tracer != NULL, 0); }
void fbxi_trace_append(fbx_fabric *f, const struct fbxi_trace_record *record);
static inline void fbxi_trace(fbx_fabric *f, const struct fbxi_trace_record *record)
{
    if (fbxi_tracing(f))
        fbxi_trace_append(f, record);
}
/* A new name for an operation, from 1; 0 while nothing is traced. */
uint64_t fbxi_trace_id(fbx_fabric *f);
/* A number for `bytes` of data: the value itself (little-endian) up to 8 bytes, a digest of more. */
uint64_t fbxi_trace_digest(const void *data, uint64_t bytes);
void fbxi_trace_free(fbx_fabric *f);
#endif
