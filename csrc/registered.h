/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that a program already has and lets others reach: its addresses, and the ways to its bytes. */
#ifndef FBX_REGISTERED_H
#define FBX_REGISTERED_H
#include "internal.h"

/* The index by which addresses of registered memory of `node` are known where regions are: behind the last region. */
static inline uint32_t fbxi_registered_region(const fbx_fabric *f, uint32_t node) { return f->region_count + node; }
static inline int fbxi_is_registered(const fbx_fabric *f, uint32_t region) { return region >= f->region_count; }

struct fbxi_registration {
    uint32_t region, index, generation, session, incarnation, pid, flags;
    uint64_t offset, bytes, address, start, nonce_at, nonce;
};

/* The table is another one, whatever its count of changes says. */
void fbxi_registered_forget(fbx_fabric *f);
/* The registration around `offset`. ADDRESS: there is none. */
int fbxi_registered_find(fbx_fabric *f, uint32_t region, uint64_t offset, struct fbxi_registration *out);
/* Whether this process registered memory of that node: its service thread then keeps it current. */
int fbxi_registers(fbx_fabric *f, uint32_t node);

/* Move bytes between private memory and registered memory. `*done` bytes have moved, also where it fails: UNSUPPORTED if
 * the memory is no longer there, BUSY or COMPLETION_TIMEOUT if its process does not answer. `may_ask` 0: under a lock that
 * its process may want, so it is only woken, and BUSY comes back. */
int fbxi_registered_read(fbx_fabric *f, uint32_t region, uint64_t offset, void *to, uint64_t bytes, uint64_t *done);
int fbxi_registered_write(fbx_fabric *f, uint32_t region, uint64_t offset, const void *from, uint64_t bytes, int may_ask, uint64_t *done);
/* FBX_FETCH_ADD, FBX_SWAP or FBX_CAS; the old value comes back in operand[0] and [1]. */
int fbxi_registered_atomic(fbx_fabric *f, uint32_t region, uint64_t offset, int kind, uint32_t bytes, uint64_t operand[4]);
/* The bytes themselves where they are ours and pinned; NULL elsewhere. Good while the caller is marked. */
uint8_t *fbxi_registered_pointer(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes, int writes);
/* An aligned scalar of up to 8 bytes, whole. */
int fbxi_registered_load(fbx_fabric *f, uint32_t region, uint64_t offset, uint32_t bytes, uint64_t *value);

/* The service thread: do what others ask of memory of this process. Returns whether there was anything. */
int fbxi_registered_serve(fbx_fabric *f);
/* A session died, or ours ends: what it registered is gone. */
void fbxi_registered_bury(fbx_fabric *f, uint32_t session, uint32_t incarnation);
void fbxi_registered_end(fbx_fabric *f);
void fbxi_registered_close(fbx_fabric *f);
#endif
