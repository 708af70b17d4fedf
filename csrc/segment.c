/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a region: mapping it, and committing it piece by piece so that no access can end in a bus error.
 *
 * A region's file is as long as the region and sparse. `prefix` says how much of its start is committed without a
 * hole, which is what nearly every access needs to know; a bitmap behind the data, itself committed page by page, knows
 * the rest. Reads of what was never committed give zeros without touching it; writes commit first.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

int fbxi_reopen(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

int fbxi_read_file(const char *path, char *out, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, out, room - 1);
    close(fd);
    if (got < 0)
        return -1;
    out[got] = 0;
    return (int)got;
}

uint64_t fbxi_process_start(uint32_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    if (fbxi_read_file(path, text, sizeof text) <= 0)
        return 0;
    /* The command may contain anything, a closing parenthesis too: count fields from the last one. */
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

int fbxi_name_ok(const char *name)
{
    size_t length = name ? strnlen(name, FBX_NAME_BYTES) : 0;
    if (!length || length >= FBX_NAME_BYTES || name[0] == '.' || name[0] == '-')
        return 0;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") == length;
}

/* ---- what the machine has ------------------------------------------------------------------------------------- */

static uint64_t number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : UINT64_MAX;
}

static uint64_t memory_left(void)
{
    char text[4096], path[512];
    uint64_t left = UINT64_MAX;
    if (fbxi_read_file("/proc/meminfo", text, sizeof text) > 0) {
        uint64_t kib = number_after(text, "MemAvailable:");
        if (kib != UINT64_MAX)
            left = kib * 1024;
    }
    if (fbxi_read_file("/proc/self/cgroup", text, sizeof text) > 0) {
        char *at = strstr(text, "0::");
        if (at) {
            at += 3;
            at[strcspn(at, "\n")] = 0;
            /* The limit of any ancestor counts. */
            for (;;) {
                char value[64];
                snprintf(path, sizeof path, "/sys/fs/cgroup%.400s/memory.max", at);
                if (fbxi_read_file(path, value, sizeof value) > 0 && value[0] != 'm') {
                    uint64_t limit = strtoull(value, NULL, 10);
                    snprintf(path, sizeof path, "/sys/fs/cgroup%.400s/memory.current", at);
                    uint64_t used = fbxi_read_file(path, value, sizeof value) > 0 ? strtoull(value, NULL, 10) : 0;
                    uint64_t here = limit > used ? limit - used : 0;
                    if (here < left)
                        left = here;
                }
                char *slash = strrchr(at, '/');
                if (!slash || slash == at)
                    break;
                *slash = 0;
            }
        }
    }
    return left;
}

/* Room for `bytes` more? tmpfs says no by itself; the machine and its control groups would say it by killing us. */
static int room_for(const fbx_fabric *f, int fd, uint64_t bytes)
{
    static _Thread_local uint64_t unchecked;
    unchecked += bytes;
    if (unchecked < 4u << 20)
        return 0;
    unchecked = 0;
    struct statvfs file_system;
    if (!(f->flags & FBX_PRIVATE) && !fstatvfs(fd, &file_system)) { /* memory without a name has no file system's limit */
        uint64_t left = (uint64_t)file_system.f_bavail * file_system.f_frsize;
        if (bytes > left)
            return fbxi_fail(FBX_E_NO_MEMORY, "%llu bytes wanted, %llu left in %s", (unsigned long long)bytes,
                             (unsigned long long)left, f->directory);
    }
    uint64_t left = memory_left();
    if (left != UINT64_MAX && bytes + (32u << 20) > left)
        return fbxi_fail(FBX_E_NO_MEMORY, "%llu bytes wanted, %llu left on this machine or in its control group",
                         (unsigned long long)bytes, (unsigned long long)left);
    return 0;
}

static int allocate(const fbx_fabric *f, int fd, uint64_t offset, uint64_t bytes)
{
    int result;
    if (f->flags & FBX_PRIVATE)
        return 0; /* memory like any other of the process */
    do
        result = fallocate(fd, 0, (off_t)offset, (off_t)bytes);
    while (result && errno == EINTR);
    if (!result)
        return 0;
    if (errno == ENOSPC || errno == ENOMEM || errno == EFBIG || errno == EDQUOT)
        return fbxi_fail_system(FBX_E_NO_MEMORY, "%s has no room for %llu bytes", f->directory,
                                (unsigned long long)bytes);
    return fbxi_fail_system(FBX_E_SYSTEM, "cannot reserve space in %s", f->directory);
}

int fbxi_commit_control(fbx_fabric *f, uint64_t offset, uint64_t bytes)
{
    if (offset + bytes > f->mapped_bytes)
        return fbxi_fail(FBX_E_CORRUPT, "the control segment's tables point outside it");
    return allocate(f, f->fd, offset, bytes);
}

int fbxi_table_take(fbx_fabric *f, int which, uint32_t index)
{
    struct fbxl_table *table = &f->header->table[which];
    if (index >= f->capacity[which])
        return fbxi_fail(FBX_E_NO_MEMORY, "a table of the fabric is full (%u entries)", f->capacity[which]);
    uint32_t high = fbxi_high(f, which);
    if (index < high)
        return 0;
    int status = fbxi_commit_control(f, f->table_offset[which] + (uint64_t)high * f->stride[which],
                                     (uint64_t)(index + 1 - high) * f->stride[which]);
    if (status)
        return status;
    while (high < index + 1 && !fbx_claim32(&table->high, high, index + 1))
        high = fbx_observe(&table->high);
    return 0;
}

/* ---- heap --------------------------------------------------------------------------------------------------------- */

static uint32_t size_class(uint64_t bytes)
{
    uint32_t c = 6;
    while (c < 29 && (1ull << c) < bytes)
        c++;
    return c - 6;
}

int fbxi_heap(fbx_fabric *f, uint64_t bytes, uint64_t *offset)
{
    struct fbxl_header *h = f->header;
    uint32_t c = size_class(bytes);
    uint64_t room = 64ull << c;
    if (bytes > room || c >= 24)
        return fbxi_fail(FBX_E_NO_MEMORY, "%llu bytes are too much for the control segment",
                         (unsigned long long)bytes);
    uint64_t block = fbx_peek(&h->heap_free[c]);
    if (fbxi_heap_at(f, block, room)) {
        /* Dying after this line leaks one block, which is all that a crash may cost. */
        fbx_publish(&h->heap_free[c], *(uint64_t *)fbxi_at(f, block));
        memset(fbxi_at(f, block), 0, room);
        *offset = block;
        return 0;
    }
    uint64_t used = fbx_peek(&h->heap_used), start = (used + (room < 4096 ? room : 4096) - 1) & ~((room < 4096 ? room : 4096) - 1);
    if (start + room > f->heap_bytes)
        return fbxi_fail(FBX_E_NO_MEMORY, "the control segment's heap is full");
    int status = fbxi_commit_control(f, f->heap_offset + start, room);
    if (status)
        return status;
    fbx_publish(&h->heap_used, start + room);
    *offset = f->heap_offset + start;
    return 0;
}

void fbxi_heap_free(fbx_fabric *f, uint64_t offset, uint64_t bytes)
{
    struct fbxl_header *h = f->header;
    uint32_t c = size_class(bytes);
    if (!offset || c >= 24 || !fbxi_heap_at(f, offset, 64ull << c))
        return;
    *(uint64_t *)fbxi_at(f, offset) = fbx_peek(&h->heap_free[c]);
    fbx_publish(&h->heap_free[c], offset);
}

/* ---- regions ------------------------------------------------------------------------------------------------------ */

static uint64_t bitmap_bytes(uint64_t bytes)
{
    uint64_t bits = (bytes + FBX_COMMIT_BYTES - 1) >> FBX_COMMIT_SHIFT;
    return ((bits + 7) / 8 + 4095) & ~4095ull;
}

static void region_path(const fbx_fabric *f, uint32_t region, char *out, size_t room)
{
    snprintf(out, room, "%s/fabrex@%u@%s@%016llx@r%u", f->directory, f->uid, f->name,
             (unsigned long long)f->instance, region);
}

/* The memory of a private fabric has no name: its descriptor is made when first needed and kept. */
static int private_fd(fbx_fabric *f, uint32_t region)
{
    const uint64_t bytes = f->region_facts[region].bytes;
    pthread_mutex_lock(&f->map_mutex);
    if (f->maps[region].fd < 0) {
        int fd = memfd_create("fabrex-region", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, (off_t)(bytes + bitmap_bytes(bytes)))) {
            close(fd);
            fd = -1;
        }
        f->maps[region].fd = fd;
    }
    int fd = f->maps[region].fd < 0 ? -1 : dup(f->maps[region].fd);
    pthread_mutex_unlock(&f->map_mutex);
    return fd;
}

static int region_fd(fbx_fabric *f, uint32_t region)
{
    if (f->maps[region].fd >= 0)
        return dup(f->maps[region].fd);
    if (f->flags & FBX_PRIVATE)
        return private_fd(f, region);
    char path[400];
    region_path(f, region, path, sizeof path);
    return open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
}

int fbxi_map_region(fbx_fabric *f, uint32_t region, struct fbxi_region_map **out)
{
    if (region >= f->region_count)
        return fbxi_fail(FBX_E_CORRUPT, "region %u does not exist", region);
    struct fbxi_region_map *map = &f->maps[region];
    *out = map;
    if (fbx_observe_pointer(&map->rw))
        return 0;
    uint64_t bytes = f->region_facts[region].bytes, whole = bytes + bitmap_bytes(bytes);
    int status = 0, fd = region_fd(f, region);
    if (fd < 0)
        return fbxi_fail_system(fbx_peek(&f->header->state) & FBXL_CLOSED ? FBX_E_CLOSED : FBX_E_CORRUPT,
                                "the memory of %s is gone", f->node_facts[f->region_facts[region].node].name);
    struct stat found;
    if (fstat(fd, &found) || (uint64_t)found.st_size < whole) {
        close(fd);
        return fbxi_fail(FBX_E_CORRUPT, "the memory of %s is %llu bytes long and should be %llu",
                         f->node_facts[f->region_facts[region].node].name, (unsigned long long)found.st_size,
                         (unsigned long long)whole);
    }
    pthread_mutex_lock(&f->map_mutex);
    if (!map->rw) {
        void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        if (at == MAP_FAILED) {
            status = fbxi_fail_system(FBX_E_NO_MEMORY, "cannot map %llu bytes", (unsigned long long)whole);
        } else {
            map->bits = (uint8_t *)at + bytes;
            fbx_publish_pointer(&map->rw, (uint8_t *)at);
        }
    }
    pthread_mutex_unlock(&f->map_mutex);
    close(fd);
    return status;
}

int fbxi_committed(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes)
{
    if (region >= f->region_count)
        return 1; /* registered memory */
    struct fbxl_region *r = &f->regions[region];
    if (offset + bytes <= fbx_observe(&r->prefix))
        return 1;
    struct fbxi_region_map *map;
    if (fbxi_map_region(f, region, &map))
        return 0;
    for (uint64_t piece = offset >> FBX_COMMIT_SHIFT; piece <= (offset + bytes - 1) >> FBX_COMMIT_SHIFT; piece++) {
        uint64_t page = (piece << FBX_COMMIT_SHIFT) / FBX_BITS_PAGE;
        if (page / 64 >= FBX_TOP_WORDS || !(fbx_observe(&r->top[page / 64]) >> (page % 64) & 1))
            return 0;
        if (!(fbx_bits_observe(&map->bits[piece / 8]) >> (piece % 8) & 1))
            return 0;
    }
    return 1;
}

int fbxi_commit(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes)
{
    if (!bytes || fbxi_committed(f, region, offset, bytes))
        return 0;
    struct fbxl_region *r = &f->regions[region];
    struct fbxi_region_map *map;
    int status = fbxi_map_region(f, region, &map);
    if (status)
        return status;
    uint64_t first = offset >> FBX_COMMIT_SHIFT, last = (offset + bytes - 1) >> FBX_COMMIT_SHIFT;
    uint64_t start = first << FBX_COMMIT_SHIFT, end = (last + 1) << FBX_COMMIT_SHIFT;
    if (end > f->region_facts[region].bytes)
        end = f->region_facts[region].bytes;
    /* The fixed area comes with the first buffer, so that what is committed from the start has no hole. */
    if (start == FBX_FIXED_BYTES && fbx_observe(&r->prefix) < start)
        start = first = 0;
    int fd = region_fd(f, region);
    if (fd < 0)
        return fbxi_fail_system(FBX_E_CORRUPT, "the memory of %s is gone", f->node_facts[f->region_facts[region].node].name);
    if ((status = room_for(f, fd, end - start)))
        goto close_fd;
    if ((status = fbxi_lock(f, &r->lock, 5 * FBX_STALL_NS)) < 0) {
        status = fbxi_fail(FBX_E_BUSY, "another process holds the allocator of %s", f->node_facts[f->region_facts[region].node].name);
        goto close_fd;
    }
    /* Space first, then the bits that say so: dying between them costs nothing but doing it again. */
    if ((status = allocate(f, fd, start, end - start)))
        goto unlock;
    uint64_t added = 0;
    for (uint64_t page = start / FBX_BITS_PAGE; page <= (end - 1) / FBX_BITS_PAGE; page++) {
        if (page / 64 >= FBX_TOP_WORDS) {
            status = fbxi_fail(FBX_E_CORRUPT, "a region is larger than any can be");
            goto unlock;
        }
        if (fbx_observe(&r->top[page / 64]) >> (page % 64) & 1)
            continue;
        uint64_t at = page * 4096, room = bitmap_bytes(f->region_facts[region].bytes) - at;
        if ((status = allocate(f, fd, f->region_facts[region].bytes + at, room < 4096 ? room : 4096)))
            goto unlock;
        fbx_or(&r->top[page / 64], 1ull << (page % 64));
    }
    for (uint64_t piece = first; piece <= last; piece++) {
        uint8_t bit = (uint8_t)(1u << (piece % 8));
        if (!(fbx_bits_or(&map->bits[piece / 8], bit) & bit))
            added += piece < (f->region_facts[region].bytes >> FBX_COMMIT_SHIFT) ? FBX_COMMIT_BYTES
                                                                                  : f->region_facts[region].bytes & (FBX_COMMIT_BYTES - 1);
    }
    fbx_count(&r->committed, added);
    uint64_t prefix = fbx_peek(&r->prefix);
    if (start <= prefix && end > prefix) {
        prefix = end;
        while (prefix < f->region_facts[region].bytes) { /* pieces that were committed out of order join up */
            uint64_t piece = prefix >> FBX_COMMIT_SHIFT, page = prefix / FBX_BITS_PAGE;
            if (!(fbx_observe(&r->top[page / 64]) >> (page % 64) & 1) || !(fbx_bits_observe(&map->bits[piece / 8]) >> (piece % 8) & 1))
                break;
            prefix = (piece + 1) << FBX_COMMIT_SHIFT;
        }
        /* Pairs with: fbx_observe(&region->prefix) before an access. Breaks: a bus error. */
        fbx_publish(&r->prefix, prefix < f->region_facts[region].bytes ? prefix : f->region_facts[region].bytes);
    }
unlock:
    fbxi_unlock(f, &r->lock);
close_fd:
    close(fd);
    return status;
}

int fbx_commit(fbx_fabric *f, uint64_t gva, uint64_t bytes)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    uint64_t region = (gva >> FBX_SLOT_SHIFT) - 1, offset = gva & FBX_SLOT_MASK;
    if (region >= f->region_count || bytes > f->region_facts[region].bytes || offset > f->region_facts[region].bytes - bytes)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, -1, gva, "0x%llx is in no region", (unsigned long long)gva);
    return fbxi_commit(f, (uint32_t)region, offset, bytes);
}
