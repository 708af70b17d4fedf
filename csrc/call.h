/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking another machine for what is not memory: names, allocation, windows. See call.c and, for the other side, errands.c. */
#ifndef FBX_CALL_H
#define FBX_CALL_H
#include "internal.h"
#include "wire.h"

#define FBXI_DIRECTORY 0u /* the machine that keeps names, barriers: the coordinator's */
#define FBXI_BUFFER_BYTES 112u
#define FBXI_CALL_NS 10000000000ull

extern _Thread_local int fbxi_on_errand; /* this thread acts for another machine: it asks no third one */
static inline int fbxi_names_away(const fbx_fabric *f) { return f->machines && f->machine != FBXI_DIRECTORY; }

/* Send `frame` (what, address, value, length, aux) and wait for its answer, which it becomes. `n` NULL: the process asks. */
int fbxi_call(fbx_fabric *f, fbx_node *n, uint32_t machine, struct fbxw_frame *frame, const void *payload, uint32_t bytes,
              void *into, uint32_t *room, uint64_t max_wait_ns);
void fbxi_pack_buffer(const struct fbx_buffer *b, uint8_t at[FBXI_BUFFER_BYTES]);
void fbxi_unpack_buffer(const uint8_t at[FBXI_BUFFER_BYTES], struct fbx_buffer *b);

int fbxi_call_put(fbx_fabric *f, const char *key, const void *value, uint64_t bytes);
int fbxi_call_get(fbx_fabric *f, const char *key, void *value, uint64_t *bytes);
int fbxi_call_find(fbx_fabric *f, const char *name, struct fbx_buffer *out);
int fbxi_call_name(fbx_fabric *f, const struct fbx_buffer *b); /* EXISTS if it is taken */
int fbxi_call_unname(fbx_fabric *f, const struct fbx_buffer *b);
int fbxi_call_alloc(fbx_fabric *f, uint32_t region, uint64_t bytes, uint64_t align, const char *name, struct fbx_buffer *out);
int fbxi_call_buffer(fbx_fabric *f, uint32_t what, const struct fbx_buffer *b); /* FREE, CHECK */
int fbxi_call_barrier(fbx_node *n, const char *name, uint32_t expected, uint64_t *ticket, uint64_t max_wait_ns);
int fbxi_call_leave(fbx_node *n, const char *name, uint64_t ticket);

/* directory.c: the parts of allocation and naming that belong to one machine */
int fbxi_alloc_here(fbx_fabric *f, int for_other, uint32_t region, uint64_t bytes, uint64_t align, const char *name, struct fbx_buffer *out);
int fbxi_free_here(fbx_fabric *f, const struct fbx_buffer *b);
int fbxi_check_here(fbx_fabric *f, const struct fbx_buffer *b);
int fbxi_name_buffer(fbx_fabric *f, const struct fbx_buffer *b);
int fbxi_unname_buffer(fbx_fabric *f, const struct fbx_buffer *b);
#endif
