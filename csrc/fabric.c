/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of a fabric: made whole under a temporary name and linked into place when it is complete, so that no process
 * ever sees half of one; opened after every word of its header has been checked; ended by its creator, by name, or by
 * whoever finds that its life is over.
 */
#include "internal.h"
#include "change.h"
#include "choice.h"
#include "door.h"
#include "event.h"
#include "jitter.h"
#include "link.h"
#include "ntb.h"
#include "pcie.h"
#include "registered.h"
#include "tier.h"
#include "trace.h"
#include "wire.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_DIRECTORY "/dev/shm"
#define HEAP_BYTES (1ull << 30)
#define BUCKETS 4096u

/* ---- registry, for fork ------------------------------------------------------------------------------------------- */

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static fbx_fabric *registry;

static void before_fork(void) { pthread_mutex_lock(&registry_mutex); }
static void after_fork_parent(void) { pthread_mutex_unlock(&registry_mutex); }
static void after_fork_child(void)
{
    /* The child shares our open file description, and with it our liveness: it must not keep us alive after our death,
     * nor may its marks land in our lanes. Its handles answer CLOSED. */
    for (fbx_fabric *f = registry; f; f = f->next) {
        fbx_poke(&f->forked, 1);
        if (f->fd >= 0)
            close(f->fd);
        f->fd = -1;
        f->service_running = 0;
        fbxi_engine_forked(f);
        fbxi_net_forked(f);
        fbxi_gateway_forked(f);
        pthread_mutex_init(&f->mutex, NULL);
        pthread_mutex_init(&f->map_mutex, NULL);
        pthread_mutex_init(&f->figures_mutex, NULL);
        for (fbx_node *n = f->node_list; n; n = n->next)
            fbxi_node_forked(n);
    }
    registry = NULL;
    pthread_mutex_init(&registry_mutex, NULL);
}

static void register_fabric(fbx_fabric *f)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    extern void fbxi_install_fork(void);
    pthread_once(&once, fbxi_install_fork);
    pthread_mutex_lock(&registry_mutex);
    f->next = registry;
    registry = f;
    pthread_mutex_unlock(&registry_mutex);
}
void fbxi_install_fork(void);
void fbxi_install_fork(void) { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

static void unregister_fabric(fbx_fabric *f)
{
    pthread_mutex_lock(&registry_mutex);
    for (fbx_fabric **at = &registry; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    pthread_mutex_unlock(&registry_mutex);
}

/* ---- paths --------------------------------------------------------------------------------------------------------- */

static const char *directory_or_default(const char *directory)
{
    return directory && directory[0] ? directory : DEFAULT_DIRECTORY;
}

static int control_path(const char *directory, const char *name, char *out, size_t room)
{
    if (!fbxi_name_ok(name))
        return fbxi_fail(FBX_E_NAME, "'%.64s' is no name for a fabric", name ? name : "");
    if (strlen(directory) > 200)
        return fbxi_fail(FBX_E_INVALID, "the directory's name is longer than 200 bytes");
    snprintf(out, room, "%s/fabrex@%u@%s", directory, (unsigned)getuid(), name);
    return 0;
}

static void remove_segments(const char *directory, uint32_t uid, const char *name, uint64_t instance)
{
    /* By listing and not by count: what a damaged header says is not to be trusted. */
    char prefix[200], path[PATH_MAX];
    int length = snprintf(prefix, sizeof prefix, "fabrex@%u@%s@%016llx@r", uid, name, (unsigned long long)instance);
    DIR *dir = opendir(directory);
    if (!dir)
        return;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (!strncmp(entry->d_name, prefix, (size_t)length)) {
            snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
            unlink(path);
        }
    closedir(dir);
    if (!fbxi_door_path(path, sizeof path, directory, uid, instance))
        unlink(path); /* its agent was killed */
}

static void read_id(const char *path, uint8_t out[16])
{
    char text[64] = "";
    memset(out, 0, 16);
    fbxi_read_file(path, text, sizeof text);
    for (int i = 0, n = 0; text[i] && n < 32; i++) {
        int digit = text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : text[i] >= 'a' && text[i] <= 'f' ? text[i] - 'a' + 10 : -1;
        if (digit >= 0) {
            out[n / 2] = (uint8_t)(out[n / 2] << 4 | digit);
            n++;
        }
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------- */

static int system_code(int code_if_missing)
{
    return errno == ENOENT ? code_if_missing : errno == EACCES || errno == EPERM ? FBX_E_DENIED : FBX_E_SYSTEM;
}

/* Check all that is used as an index or an offset later; a peer of the same user may have scribbled over it. */
static int check_header(const struct fbxl_header *h, uint64_t file_bytes)
{
    if (h->version != FBX_LAYOUT_VERSION || h->layout_hash != fbxi_layout_hash())
        return fbxi_fail(FBX_E_LAYOUT, "layout %u with hash %016llx here, %u with %016llx in the fabric",
                         FBX_LAYOUT_VERSION, (unsigned long long)fbxi_layout_hash(), h->version,
                         (unsigned long long)h->layout_hash);
    if (h->page_bytes != (uint32_t)sysconf(_SC_PAGESIZE) || h->line_bytes != FBX_LINE)
        return fbxi_fail(FBX_E_LAYOUT, "pages of %ld bytes here, of %u in the fabric", sysconf(_SC_PAGESIZE),
                         h->page_bytes);
    if (h->control_bytes > file_bytes)
        return fbxi_fail(FBX_E_CORRUPT, "the control segment is %llu bytes long and should be %llu",
                         (unsigned long long)file_bytes, (unsigned long long)h->control_bytes);
    static const uint32_t strides[FBXL_TABLES] = {sizeof(struct fbxl_node), sizeof(struct fbxl_region),
        sizeof(struct fbxl_link), sizeof(struct fbxl_direction), sizeof(struct fbxl_session),
        sizeof(struct fbxl_requester), sizeof(struct fbxl_lane), sizeof(struct fbxl_buffer), sizeof(struct fbxl_name), 4};
    for (int i = 0; i < FBXL_TABLES; i++) {
        const struct fbxl_table *t = &h->table[i];
        if (t->stride != strides[i] || t->offset > h->control_bytes || t->offset & 63 ||
            (uint64_t)t->capacity * t->stride > h->control_bytes - t->offset || fbx_peek(&t->high) > t->capacity)
            return fbxi_fail(FBX_E_CORRUPT, "table %d of the fabric is damaged", i);
    }
    /* The clock's scale is what the creator computed from the rest: another one could make every wait an hour. */
    if (h->tick_hz < 1000000u || h->tick_hz > 100000000000ull || !h->dilation_num || !h->dilation_den || h->clock_kind > 1 ||
        h->ps_per_tick_q32 !=
            (uint64_t)(((unsigned __int128)1000000000000u << 32) / h->tick_hz * h->dilation_den / h->dilation_num))
        return fbxi_fail(FBX_E_CORRUPT, "the clock of the fabric is damaged");
    const struct fbxl_table *t = h->table;
    if (!t[FBXL_NODES].capacity || t[FBXL_NODES].capacity > 4096 || t[FBXL_REGIONS].capacity > 65536 ||
        t[FBXL_LINKS].capacity > 16384 || t[FBXL_DIRECTIONS].capacity != 2 * t[FBXL_LINKS].capacity ||
        !t[FBXL_BUCKETS].capacity)
        return fbxi_fail(FBX_E_CORRUPT, "the tables of the fabric have sizes that no fabric has");
    if (h->heap_offset & 4095 || h->heap_offset > h->control_bytes || h->heap_bytes > h->control_bytes - h->heap_offset ||
        h->topology_offset > h->control_bytes || h->topology_bytes > h->control_bytes - h->topology_offset ||
        !memchr(h->name, 0, sizeof h->name) || h->ps_per_tick_q32 == 0 || h->tick_source > 3)
        return fbxi_fail(FBX_E_CORRUPT, "the header of the fabric is damaged");
    uint64_t events;
    if (!fbxi_event_ring(h, &events))
        return fbxi_fail(FBX_E_CORRUPT, "the header of the fabric is damaged: it has no place for events");
    return 0;
}

static int check_tables(fbx_fabric *f)
{
    for (uint32_t i = 0; i < f->node_count; i++) {
        const struct fbxl_node *n = &f->node_facts[i];
        if (!memchr(n->name, 0, sizeof n->name) || n->first_region > f->region_count ||
            n->region_count > f->region_count - n->first_region || n->profile >= FBX_PROFILES ||
            !n->access_bytes || n->access_bytes > 64 || (n->access_bytes & (n->access_bytes - 1)))
            return fbxi_fail(FBX_E_CORRUPT, "node %u of the fabric is damaged", i);
    }
    for (uint32_t i = 0; i < f->region_count; i++) {
        const struct fbxl_region *r = &f->region_facts[i];
        if (!memchr(r->tier, 0, sizeof r->tier) || r->node >= f->node_count || r->bytes > 1ull << FBX_SLOT_SHIFT || r->bytes < FBX_FIXED_BYTES)
            return fbxi_fail(FBX_E_CORRUPT, "region %u of the fabric is damaged", i);
    }
    for (uint32_t i = 0; i < f->link_count; i++) {
        const struct fbxl_link *l = &f->link_facts[i];
        const bool good = l->node[0] < f->node_count && l->node[1] < f->node_count && memchr(l->name, 0, sizeof l->name) &&
                          !fbxi_link_check(l->name, l->kind, l->value);
        if (!good)
            return fbxi_fail(FBX_E_CORRUPT, "link %u of the fabric is damaged", i);
    }
    return 0;
}

/* A private copy of `count` entries, and room for `more`; at least one byte, so that NULL means no memory. */
static void *copy_of(const void *from, uint64_t count, uint64_t stride, uint64_t more)
{
    void *to = NULL;
    if (posix_memalign(&to, 64, (count + more) * stride + 64))
        return NULL;
    memcpy(to, from, count * stride);
    memset((uint8_t *)to + count * stride, 0, more * stride);
    return to;
}

/* The slot of each node's registered memory, behind the regions': as slow as the node's first tier. */
static void registered_facts(fbx_fabric *f)
{
    for (uint32_t i = 0; i < f->node_count; i++) {
        struct fbxl_region *r = &f->region_facts[f->region_count + i];
        const struct fbxl_node *n = &f->node_facts[i];
        if (n->region_count && n->first_region < f->region_count)
            *r = f->region_facts[n->first_region];
        snprintf(r->tier, sizeof r->tier, "registered");
        r->node = i;
        r->index = n->region_count;
        r->bytes = 1ull << FBX_SLOT_SHIFT;
        r->bus = (uint64_t)n->region_count << FBX_SLOT_SHIFT;
    }
}

/* A private copy, checked; NULL where there is none. */
static int keep_jitter(const fbx_fabric *f, uint64_t offset, uint32_t points, struct fbxi_jitter **out)
{
    if (!points)
        return 0;
    uint64_t pairs[2 * FBX_JITTER_POINTS];
    const uint64_t *at = points <= FBX_JITTER_POINTS ? fbxi_heap_at(f, offset, points * 16ull) : NULL;
    if (at)
        memcpy(pairs, at, points * 16ull);
    *out = at ? fbxi_jitter_new(pairs, points) : NULL;
    return *out ? 0 : fbxi_fail(FBX_E_CORRUPT, "a distribution of the fabric is damaged");
}

static int keep_facts(fbx_fabric *f)
{
    f->node_facts = copy_of(f->nodes, f->node_count, sizeof *f->nodes, 0);
    f->region_facts = copy_of(f->regions, f->region_count, sizeof *f->regions, f->node_count);
    if (f->node_facts && f->region_facts)
        registered_facts(f);
    f->link_facts = copy_of(f->links, f->link_count, sizeof *f->links, 0);
    f->figures = calloc(f->link_count * 2ull + 1, sizeof(*f->figures));
    f->tiers = calloc(f->region_count + 1ull, sizeof(*f->tiers));
    f->tier_jitter = calloc(f->region_count + 1ull, sizeof(*f->tier_jitter));
    f->link_jitter = calloc(f->link_count + 1ull, sizeof(*f->link_jitter));
    f->seed = f->header->seed;
    if (!f->node_facts || !f->region_facts || !f->link_facts || !f->figures || !f->tiers || !f->tier_jitter || !f->link_jitter)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    int status = 0;
    for (uint32_t i = 0; !status && i < f->region_count; i++) {
        status = keep_jitter(f, f->region_facts[i].jitter, f->region_facts[i].jitter_points, &f->tier_jitter[i]);
        f->tiers_limited |= f->tier_jitter[i] || f->region_facts[i].ps_per_byte_q24;
    }
    for (uint32_t i = 0; !status && i < f->link_count; i++)
        status = keep_jitter(f, f->link_facts[i].jitter, f->link_facts[i].jitter_points, &f->link_jitter[i]);
    return status;
}

static void locate_tables(fbx_fabric *f)
{
    const struct fbxl_header *h = f->header;
    for (int i = 0; i < FBXL_TABLES; i++) {
        f->capacity[i] = h->table[i].capacity;
        f->stride[i] = h->table[i].stride;
        f->table_offset[i] = h->table[i].offset;
    }
    f->heap_offset = h->heap_offset;
    f->heap_bytes = h->heap_bytes;
    f->instance = h->instance;
    fbxi_event_ring(h, &f->events_offset);
    f->uid = h->uid;
    f->nodes = fbxi_at(f, h->table[FBXL_NODES].offset);
    f->regions = fbxi_at(f, h->table[FBXL_REGIONS].offset);
    f->links = fbxi_at(f, h->table[FBXL_LINKS].offset);
    f->directions = fbxi_at(f, h->table[FBXL_DIRECTIONS].offset);
    f->sessions = fbxi_at(f, h->table[FBXL_SESSIONS].offset);
    f->requesters = fbxi_at(f, h->table[FBXL_REQUESTERS].offset);
    f->lanes = fbxi_at(f, h->table[FBXL_LANES].offset);
    f->buffers = fbxi_at(f, h->table[FBXL_BUFFERS].offset);
    f->names = fbxi_at(f, h->table[FBXL_NAMES].offset);
    f->buckets = fbxi_at(f, h->table[FBXL_BUCKETS].offset);
    f->node_count = h->table[FBXL_NODES].capacity;
    f->region_count = h->table[FBXL_REGIONS].capacity;
    f->link_count = h->table[FBXL_LINKS].capacity;
    f->flags = h->flags;
    f->ordering = h->ordering;
    f->choice_seed = h->seed;
    memcpy(f->name, h->name, sizeof f->name);
    f->identity_of_fabric = f->instance;
}

/* The table of machines, if there are several; its numbers are bounded here, once. */
static int locate_machines(fbx_fabric *f)
{
    for (uint32_t i = 0; i < 16; i++) {
        const struct fbxl_extension *e = &f->header->extension[i];
        if (e->id != FBXL_EXTENSION_MACHINES)
            continue;
        struct fbxl_machines *m = fbxi_heap_at(f, e->offset, sizeof *m);
        if (!m || m->count < 2 || m->count > FBX_MACHINES || m->machine >= m->count)
            return fbxi_fail(FBX_E_CORRUPT, "the table of machines is damaged");
        f->machine = m->machine;
        f->machine_count = m->count;
        f->identity_of_fabric = m->fabric;
        f->machines = m;
        for (uint32_t n = 0; n < f->node_count; n++)
            if (f->node_facts[n].machine >= m->count)
                return fbxi_fail(FBX_E_CORRUPT, "node %u of the fabric is damaged", n);
        for (uint32_t k = 0; k < m->count; k++)
            if (!memchr(m->of[k].name, 0, sizeof m->of[k].name))
                return fbxi_fail(FBX_E_CORRUPT, "machine %u of the fabric is damaged", k);
    }
    return 0;
}

static fbx_fabric *fabric_new(const char *directory)
{
    fbx_fabric *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->fd = -1;
    f->session = UINT32_MAX;
    snprintf(f->directory, sizeof f->directory, "%s", directory);
    pthread_mutex_init(&f->mutex, NULL);
    pthread_mutex_init(&f->map_mutex, NULL);
    pthread_mutex_init(&f->figures_mutex, NULL);
    pthread_mutex_init(&f->engine_mutex, NULL);
    pthread_mutex_init(&f->registered_mutex, NULL);
    return f;
}

static int fabric_ready(fbx_fabric *f)
{
    f->maps = calloc(f->region_count ? f->region_count : 1, sizeof *f->maps);
    f->trees = calloc(f->node_count, sizeof *f->trees);
    if (!f->maps || !f->trees)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint32_t i = 0; i < f->region_count; i++)
        f->maps[i].fd = -1;
    fbxi_clock_load(&f->clock, f->header);
    /* An epoch in the future, or more than ten years ago, makes every deadline nonsense. */
    if (f->clock.kind == FBX_REAL &&
        (fbxi_ticks_now(&f->clock) - f->clock.epoch) / f->clock.ticks_per_us > 315360000000000ull)
        return fbxi_fail(FBX_E_CORRUPT, "the clock of the fabric is damaged");
    if (!(f->flags & FBXL_EXPLICIT_FENCE) && fbxi_membarrier_register())
        return fbxi_fail_system(FBX_E_SYSTEM, "this process may not use membarrier(2), which the fabric's creator could; "
                                              "create the fabric with FABREX_EXPLICIT_FENCE=1");
    return fbxi_routes_init(f);
}

void fbx_fabric_free(fbx_fabric *f)
{
    if (!f)
        return;
    if (!fbx_peek(&f->closed) && !fbx_peek(&f->forked))
        fbx_fabric_close(f);
    unregister_fabric(f);
    for (uint32_t i = 0; f->maps && f->region_facts && i < f->region_count; i++) {
        uint64_t bytes = f->region_facts[i].bytes, bits = (((bytes + FBX_COMMIT_BYTES - 1) >> FBX_COMMIT_SHIFT) + 7) / 8;
        bits = (bits + 4095) & ~4095ull;
        if (f->maps[i].rw)
            munmap(f->maps[i].rw, bytes + bits);
        if (f->maps[i].ro)
            munmap(f->maps[i].ro, bytes);
        if (f->maps[i].fd >= 0)
            close(f->maps[i].fd);
    }
    for (uint32_t i = 0; f->trees && i < f->node_count; i++)
        free(f->trees[i]);
    if (f->base)
        munmap(f->base, f->mapped_bytes);
    if (f->fd >= 0)
        close(f->fd);
    free(f->node_facts);
    free(f->region_facts);
    free(f->link_facts);
    fbxi_figures_free(f);
    fbxi_tiers_free(f);
    free(f->maps);
    free(f->trees);
    free(f->adjacent);
    free(f->adjacent_first);
    fbxi_engine_free(f);
    fbxi_net_free(f);
    fbxi_trace_free(f);
    fbxi_choices_free(f);
    pthread_mutex_destroy(&f->mutex);
    pthread_mutex_destroy(&f->map_mutex);
    pthread_mutex_destroy(&f->figures_mutex);
    pthread_mutex_destroy(&f->engine_mutex);
    fbxi_registered_close(f);
    pthread_mutex_destroy(&f->registered_mutex);
    free(f);
}

/* A mapping keeps the description that it was made from, and a child that was forked keeps the mapping: made from the one
 * that holds our locks, it would keep them after our death. */
static void *map_file(const fbx_fabric *f)
{
    int fd = fbxi_reopen(f->fd);
    void *at = mmap(NULL, f->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd < 0 ? f->fd : fd, 0);
    int system = errno;
    if (fd >= 0)
        close(fd);
    errno = system;
    return at;
}

/* Map the control segment of `fd` (which f then owns) and check it. */
static int map_control(fbx_fabric *f)
{
    struct stat found;
    if (fstat(f->fd, &found))
        return fbxi_fail_system(FBX_E_SYSTEM, "cannot look at the control segment");
    if (found.st_uid != geteuid() && geteuid() != 0)
        return fbxi_fail(FBX_E_DENIED, "the fabric belongs to user %u, this process to user %u", found.st_uid, geteuid());
    if ((uint64_t)found.st_size < sizeof(struct fbxl_header))
        return fbxi_fail(FBX_E_CORRUPT, "the control segment is %llu bytes long: no fabric", (unsigned long long)found.st_size);
    struct fbxl_header copy;
    if (pread(f->fd, &copy, sizeof copy, 0) != (ssize_t)sizeof copy)
        return fbxi_fail_system(FBX_E_CORRUPT, "cannot read the control segment");
    if (fbx_peek(&copy.magic) != FBX_MAGIC)
        return fbxi_fail(FBX_E_CORRUPT, "the control segment does not begin like a fabric");
    int status = check_header(&copy, (uint64_t)found.st_size);
    if (status)
        return status;
    f->mapped_bytes = copy.control_bytes;
    void *at = map_file(f);
    if (at == MAP_FAILED)
        return fbxi_fail_system(FBX_E_NO_MEMORY, "cannot map the control segment");
    f->base = at;
    f->header = at;
    /* Pairs with: the publish of the magic by the creator. Breaks: a header that is not filled in. */
    if (fbx_observe(&f->header->magic) != FBX_MAGIC || check_header(f->header, f->mapped_bytes))
        return fbxi_fail(FBX_E_CORRUPT, "the control segment changed while it was opened");
    locate_tables(f);
    int kept = keep_facts(f);
    if (!kept)
        kept = check_tables(f);
    return kept ? kept : locate_machines(f);
}

static int open_control(const char *directory, const char *name, fbx_fabric **out)
{
    directory = directory_or_default(directory);
    char path[400];
    int status = control_path(directory, name, path, sizeof path);
    if (status)
        return status;
    fbx_fabric *f = fabric_new(directory);
    if (!f)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    f->fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (f->fd < 0)
        status = fbxi_fail_system(system_code(FBX_E_NOT_FOUND), "no fabric '%s' in %s", name, directory);
    else
        status = map_control(f);
    if (status) {
        fbx_poke(&f->closed, 1);
        fbx_fabric_free(f);
        return status;
    }
    *out = f;
    return 0;
}

static int earlier_boot(const fbx_fabric *f)
{
    uint8_t boot[16];
    read_id("/proc/sys/kernel/random/boot_id", boot);
    return memcmp(boot, f->header->boot_id, 16) != 0;
}

static int owner_alive(fbx_fabric *f)
{
    return fbx_observe(&f->sessions[0].incarnation) == 1 && !fbxi_session_dead(f, 0, 1);
}

static int start(fbx_fabric *f)
{
    int status = fabric_ready(f);
    if (!status && f->session == UINT32_MAX)
        status = fbxi_session_open(f);
    if (status)
        return status;
    register_fabric(f);
    return f->flags & FBX_NO_SERVICE || f->clock.kind != FBX_REAL ? 0 : fbxi_service_start(f);
}

int fbx_fabric_open(const char *directory, const char *name, fbx_fabric **out)
{
    fbx_fabric *f = NULL;
    int status = open_control(directory, name, &f);
    if (status)
        return status;
    if (earlier_boot(f))
        status = fbxi_fail(FBX_E_NOT_FOUND, "'%s' is left from before the machine's last start", name);
    else if (fbx_observe(&f->header->state) & FBXL_CLOSED)
        status = fbxi_fail(FBX_E_NOT_FOUND, "'%s' is being taken down", name);
    else if ((f->flags & FBXL_OWNED) && !owner_alive(f))
        status = fbxi_fail(FBX_E_NOT_FOUND, "the process that owned '%s' is gone, and the fabric with it", name);
    else
        status = start(f);
    if (status) {
        fbx_fabric_free(f);
        return status;
    }
    *out = f;
    return 0;
}

int fbx_fabric_observe(const char *directory, const char *name, fbx_fabric **out)
{
    fbx_fabric *f = NULL;
    int status = open_control(directory, name, &f);
    if (status)
        return status;
    if (earlier_boot(f) || fbx_observe(&f->header->state) & FBXL_CLOSED || ((f->flags & FBXL_OWNED) && !owner_alive(f)))
        status = fbxi_fail(FBX_E_NOT_FOUND, "no fabric '%s' in %s", name, f->directory);
    else
        fbxi_clock_load(&f->clock, f->header);
    f->observer = 1;
    fbx_poke(&f->closed, 1); /* for whatever needs a session */
    if (status) {
        fbx_fabric_free(f);
        return status;
    }
    *out = f;
    return 0;
}

int fbx_fabric_open_fds(int control_fd, const int *region_fds, uint32_t count, fbx_fabric **out)
{
    fbx_fabric *f = fabric_new("(descriptors)");
    if (!f)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    /* A lock belongs to an open file description: ours must not be the one that the sender still uses. */
    f->fd = fbxi_reopen(control_fd);
    int status = f->fd < 0 ? fbxi_fail_system(FBX_E_SYSTEM, "cannot open descriptor %d anew", control_fd) : map_control(f);
    if (!status)
        status = start(f);
    for (uint32_t i = 0; !status && i < count && i < f->region_count; i++)
        if (region_fds[i] >= 0)
            f->maps[i].fd = fcntl(region_fds[i], F_DUPFD_CLOEXEC, 3);
    if (status) {
        if (!f->header)
            fbx_poke(&f->closed, 1);
        fbx_fabric_free(f);
        return status;
    }
    *out = f;
    return 0;
}

/* ---- ending --------------------------------------------------------------------------------------------------------- */

static void end_fabric(fbx_fabric *f)
{
    if (!(fbx_or(&f->header->state, FBXL_CLOSED) & FBXL_CLOSED))
        fbxi_event(f, &(struct fbxi_event){FBX_EVENT_FABRIC_DOWN, UINT32_MAX, UINT32_MAX, UINT32_MAX, (uint64_t)getpid(), 0});
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    for (uint32_t i = 0; i < high; i++)
        fbx_add(&f->requesters[i].generation, 1);
    if (f->flags & FBX_PRIVATE)
        return; /* its memory goes with its last mapping */
    char path[400];
    snprintf(path, sizeof path, "%s/fabrex@%u@%s", f->directory, f->uid, f->name);
    /* Only if the name still means this fabric: another may have been made since. */
    struct stat named, ours;
    if (!stat(path, &named) && !fstat(f->fd, &ours) && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev)
        unlink(path);
    remove_segments(f->directory, f->uid, f->name, f->instance);
    fbx_add(&f->header->names_changed, 1);
    fbxi_futex_wake(&f->header->names_changed);
}

int fbxi_end_if_orphan(fbx_fabric *f);
int fbxi_end_if_orphan(fbx_fabric *f)
{
    if (!(f->flags & FBXL_OWNED) || (fbx_peek(&f->header->state) & FBXL_CLOSED) || f->creator || owner_alive(f))
        return 0;
    end_fabric(f);
    return 1;
}

int fbx_fabric_close(fbx_fabric *f)
{
    if (fbx_peek(&f->closed))
        return 0;
    fbx_poke(&f->closed, 1);
    if (fbx_peek(&f->forked) || !f->header)
        return 0;
    fbxi_service_stop(f);
    fbxi_gateway_stop(f);
    fbxi_event_look(f);
    for (fbx_node *n = f->node_list; n; n = n->next)
        fbx_node_detach(n);
    fbxi_engine_stop(f);
    fbxi_net_stop(f);
    if (f->creator && (f->flags & FBXL_OWNED))
        end_fabric(f);
    fbxi_registered_end(f);
    fbxi_session_close(f);
    unregister_fabric(f);
    /* The descriptor goes now, so that a closed fabric costs none; the mappings stay for views. */
    close(f->fd);
    f->fd = -1;
    return 0;
}

static int others_attached(fbx_fabric *f)
{
    int count = 0;
    uint32_t high = fbxi_high(f, FBXL_SESSIONS);
    for (uint32_t i = 0; i < high; i++)
        if (i != f->session && fbx_observe(&f->sessions[i].state) == FBXL_LIVE &&
            !fbxi_session_dead(f, i, fbx_observe(&f->sessions[i].incarnation)))
            count++;
    return count;
}

int fbx_fabric_destroy(const char *directory, const char *name, int force)
{
    fbx_fabric *f = NULL;
    int status = open_control(directory, name, &f);
    if (status)
        return status;
    int others = others_attached(f);
    if (others && !force && !earlier_boot(f))
        status = fbxi_fail(FBX_E_BUSY, "%d process%s attached to '%s'", others, others == 1 ? " is" : "es are", name);
    else
        end_fabric(f);
    fbx_poke(&f->closed, 1);
    fbx_fabric_free(f);
    return status;
}

int fbx_fabric_reclaim(const char *directory, const char *name)
{
    fbx_fabric *f = NULL;
    int status = open_control(directory, name, &f);
    if (status == FBX_E_CORRUPT || status == FBX_E_LAYOUT) {
        /* Damaged: over if no living process holds any session of it. Another version's: leave it alone. */
        char path[400];
        directory = directory_or_default(directory);
        if (status == FBX_E_LAYOUT || control_path(directory, name, path, sizeof path))
            return 0;
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            return 0;
        int held = fbxi_sessions_held(fd);
        struct fbxl_header h;
        memset(&h, 0, sizeof h);
        struct stat named, ours;
        if (!held && pread(fd, &h, sizeof h, 0) >= 0 && !stat(path, &named) && !fstat(fd, &ours) &&
            named.st_ino == ours.st_ino && named.st_dev == ours.st_dev) {
            unlink(path);
            if (fbx_peek(&h.magic) == FBX_MAGIC)
                remove_segments(directory, (uint32_t)getuid(), name, h.instance);
        }
        close(fd);
        return !held;
    }
    if (status)
        return status == FBX_E_NOT_FOUND ? 0 : status;
    int over = earlier_boot(f) || ((f->flags & FBXL_OWNED) && !owner_alive(f)) ||
               (fbx_observe(&f->header->state) & FBXL_CLOSED);
    if (over)
        end_fabric(f);
    fbx_poke(&f->closed, 1);
    fbx_fabric_free(f);
    return over;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int fbx_fabric_prune(const char *directory)
{
    directory = directory_or_default(directory);
    char prefix[32], path[PATH_MAX];
    int length = snprintf(prefix, sizeof prefix, "fabrex@%u@", (unsigned)getuid()), removed = 0;
    DIR *dir = opendir(directory);
    if (!dir)
        return fbxi_fail_system(system_code(FBX_E_NOT_FOUND), "cannot list %s", directory);
    /* Files of a fabric by name, then its memory: `fabrex@UID@NAME`, `…@INSTANCE@new` while it is made, `…@INSTANCE@rN`. */
    uint64_t *alive = NULL, count = 0, room = 0;
    for (int pass = 0; pass < 2; pass++) {
        rewinddir(dir);
        for (struct dirent *entry; (entry = readdir(dir));) {
            if (strncmp(entry->d_name, prefix, (size_t)length))
                continue;
            const char *name = entry->d_name + length, *at = strchr(name, '@');
            const char *kind = at ? strchr(at + 1, '@') : NULL;
            uint64_t instance = at ? strtoull(at + 1, NULL, 16) : 0;
            snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
            if (pass == 0 && !at && fbx_fabric_reclaim(directory, name) == 1) {
                removed++;
                continue;
            }
            if (pass == 0 && (!at || (kind && !strcmp(kind, "@new")))) {
                int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
                struct stat found;
                struct fbxl_header h;
                memset(&h, 0, sizeof h);
                if (fd < 0)
                    continue;
                /* Half made and held by nobody for a second: its maker died. */
                if (at && !fbxi_sessions_held(fd) && !fstat(fd, &found) && time(NULL) > found.st_mtime + 1) {
                    removed += !unlink(path);
                } else {
                    if (!at && pread(fd, &h, sizeof h, 0) >= 0)
                        instance = h.instance;
                    if (count == room) {
                        room = room ? room * 2 : 64;
                        uint64_t *more = realloc(alive, room * sizeof *alive);
                        if (!more) {
                            close(fd);
                            break;
                        }
                        alive = more;
                    }
                    alive[count++] = instance;
                }
                close(fd);
            } else if (pass == 1 && kind && !strncmp(kind, "@r", 2)) {
                if (!bsearch(&instance, alive, count, sizeof *alive, by_value))
                    unlink(path);
            }
        }
        if (pass == 0 && count)
            qsort(alive, count, sizeof *alive, by_value);
    }
    closedir(dir);
    free(alive);
    return removed;
}

/* ---- creating ------------------------------------------------------------------------------------------------------- */

static uint64_t align_up(uint64_t value, uint64_t align) { return (value + align - 1) & ~(align - 1); }

static void link_values(const struct fbx_config_link *l, uint64_t value[FBX_LINK_VALUES])
{
    memset(value, 0, FBX_LINK_VALUES * sizeof *value);
    value[FBX_LINK_DELAY_PS] = l->delay_ps;
    value[FBX_LINK_GEN] = l->gen;
    value[FBX_LINK_LANES] = l->lanes;
    value[FBX_LINK_MPS] = l->mps;
    value[FBX_LINK_MRRS] = l->mrrs;
    value[FBX_LINK_RCB] = l->rcb;
    value[FBX_LINK_RATE_BPS] = l->rate_bps;
    value[FBX_LINK_MTU] = l->mtu;
    value[FBX_LINK_OVERHEAD_BYTES] = l->overhead_bytes;
    value[FBX_LINK_POSTED_CREDITS_HEADER] = l->posted_credits_header;
    value[FBX_LINK_POSTED_CREDITS_DATA] = l->posted_credits_data;
    value[FBX_LINK_NONPOSTED_CREDITS_HEADER] = l->nonposted_credits_header;
    value[FBX_LINK_NONPOSTED_CREDITS_DATA] = l->nonposted_credits_data;
    value[FBX_LINK_COMPLETION_CREDITS_HEADER] = l->completion_credits_header;
    value[FBX_LINK_COMPLETION_CREDITS_DATA] = l->completion_credits_data;
    value[FBX_LINK_TAGS] = l->kind ? 0 : l->tags ? l->tags : 32;
}

static int check_jitter(const uint64_t *pairs, uint64_t points)
{
    if (!points)
        return 0;
    struct fbxi_jitter *j = pairs && points <= FBX_JITTER_POINTS ? fbxi_jitter_new(pairs, (uint32_t)points) : NULL;
    free(j);
    return !j;
}

static int check_config(const struct fbx_config *c)
{
    if (!c->node_count || c->node_count > 4096 || c->region_count > 65536 || c->link_count > 16384)
        return fbxi_fail(FBX_E_TOPOLOGY, "%u nodes, %u regions, %u links: a fabric has 1 to 4096, 0 to 65536, 0 to 16384",
                         c->node_count, c->region_count, c->link_count);
    for (uint32_t i = 0; i < c->node_count; i++)
        if (!fbxi_name_ok(c->nodes[i].name) || c->nodes[i].kind < FBX_HOST || c->nodes[i].kind > FBX_SWITCH ||
            c->nodes[i].profile >= FBX_PROFILES || c->nodes[i].access_bytes > 64 ||
            (c->nodes[i].access_bytes & (c->nodes[i].access_bytes - 1)))
            return fbxi_fail(FBX_E_TOPOLOGY, "node %u ('%.64s') has a bad name, kind, profile or access width", i,
                             c->nodes[i].name ? c->nodes[i].name : "");
    for (uint32_t i = 0; i < c->region_count; i++) {
        const struct fbx_config_region *r = &c->regions[i];
        if (r->node >= c->node_count || (i && r->node < c->regions[i - 1].node) || !r->tier ||
            strlen(r->tier) >= FBX_TIER_BYTES)
            return fbxi_fail(FBX_E_TOPOLOGY, "region %u has a bad node or tier", i);
        if (check_jitter(r->jitter, r->jitter_points))
            return fbxi_fail(FBX_E_TOPOLOGY, "the jitter of %s of %s is no distribution", r->tier, c->nodes[r->node].name);
        if (r->bytes < 2 * FBX_FIXED_BYTES || r->bytes > 1ull << FBX_SLOT_SHIFT || r->bytes % 4096)
            return fbxi_fail(FBX_E_TOPOLOGY, "%s of %s has %llu bytes; allowed are multiples of 4 KiB from 128 KiB to 1 TiB",
                             r->tier, c->nodes[r->node].name, (unsigned long long)r->bytes);
    }
    for (uint32_t i = 0; i < c->link_count; i++) {
        const struct fbx_config_link *l = &c->links[i];
        if (l->node_a >= c->node_count || l->node_b >= c->node_count || l->node_a == l->node_b || !l->name ||
            strlen(l->name) >= sizeof((struct fbxl_link *)0)->name)
            return fbxi_fail(FBX_E_TOPOLOGY, "link %u has bad endpoints or a bad name", i);
        if (check_jitter(l->jitter, l->jitter_points))
            return fbxi_fail(FBX_E_TOPOLOGY, "the jitter of link %s is no distribution", l->name);
        uint64_t value[FBX_LINK_VALUES];
        link_values(l, value);
        if (fbxi_link_check(l->name, l->kind, value)) {
            char why[256];
            snprintf(why, sizeof why, "%s", fbx_last_error()->text);
            return fbxi_fail(FBX_E_TOPOLOGY, "%s", why);
        }
        if (c->machine_count && l->home >= c->machine_count)
            return fbxi_fail(FBX_E_TOPOLOGY, "link %s is at home on machine %u of %u", l->name, l->home, c->machine_count);
    }
    return 0;
}

static int check_machines(const struct fbx_config *c)
{
    if (!c->machine_count)
        return 0;
    if (c->machine_count < 2 || c->machine_count > FBX_MACHINES || c->machine >= c->machine_count || !c->machine_names)
        return fbxi_fail(FBX_E_TOPOLOGY, "machine %u of %u: a fabric has 2 to %u, or is on one", c->machine, c->machine_count,
                         FBX_MACHINES);
    if (c->clock != FBX_REAL)
        return fbxi_fail(FBX_E_TOPOLOGY, "only the real clock runs on several machines");
    for (uint32_t i = 0; i < c->node_count; i++)
        if (c->nodes[i].machine >= c->machine_count)
            return fbxi_fail(FBX_E_TOPOLOGY, "node %s is on machine %u of %u", c->nodes[i].name, c->nodes[i].machine, c->machine_count);
    for (uint32_t i = 0; i < c->machine_count; i++)
        if (!fbxi_name_ok(c->machine_names[i]))
            return fbxi_fail(FBX_E_TOPOLOGY, "'%.64s' is no name for a machine", c->machine_names[i] ? c->machine_names[i] : "");
    return 0;
}

static int make_machines(fbx_fabric *f, const struct fbx_config *c)
{
    uint64_t offset;
    int status = c->machine_count ? fbxi_heap(f, sizeof(struct fbxl_machines), &offset) : 0;
    if (status || !c->machine_count)
        return status;
    struct fbxl_machines *m = fbxi_at(f, offset);
    m->fabric = c->fabric_id;
    m->machine = c->machine;
    m->count = c->machine_count;
    for (uint32_t i = 0; i < c->machine_count; i++)
        snprintf(m->of[i].name, sizeof m->of[i].name, "%s", c->machine_names[i]);
    f->header->extension[1] = (struct fbxl_extension){FBXL_EXTENSION_MACHINES, 1, offset, sizeof *m};
    return 0;
}

static int fill_jitter(fbx_fabric *f, const uint64_t *pairs, uint64_t points, uint64_t *offset, uint32_t *count)
{
    if (!points)
        return 0;
    int status = fbxi_heap(f, points * 16, offset); /* nobody else is there yet */
    if (status)
        return status;
    memcpy(fbxi_at(f, *offset), pairs, points * 16);
    *count = (uint32_t)points;
    return 0;
}

static int fill(fbx_fabric *f, const struct fbx_config *c)
{
    uint32_t region = 0, rank = 0;
    int status;
    for (uint32_t i = 0; i < c->node_count; i++) {
        const struct fbx_config_node *from = &c->nodes[i];
        struct fbxl_node *n = &f->nodes[i];
        snprintf(n->name, sizeof n->name, "%s", from->name);
        n->kind = from->kind;
        n->profile = from->profile;
        n->machine = from->machine;
        n->rank = from->kind == FBX_HOST || from->kind == FBX_ACCELERATOR ? rank++ : UINT32_MAX;
        n->delay_ps = from->delay_ps;
        n->access_bytes = from->access_bytes ? from->access_bytes : 8;
        n->tags = from->dma_tags ? from->dma_tags : 32;
        n->pio_read_ps = from->pio_read_ps;
        n->pio_write_ps = from->pio_write_ps;
        n->dma_setup_read_ps = from->dma_setup_read_ps;
        n->dma_setup_write_ps = from->dma_setup_write_ps;
        n->wc = from->wc != 0;
        n->first_region = region;
        for (uint32_t index = 0; region < c->region_count && c->regions[region].node == i; region++, index++) {
            const struct fbx_config_region *r = &c->regions[region];
            struct fbxl_region *to = &f->regions[region];
            snprintf(to->tier, sizeof to->tier, "%s", r->tier);
            to->node = i;
            to->index = index;
            to->bytes = r->bytes;
            to->bus = (uint64_t)index << FBX_SLOT_SHIFT;
            to->latency_ps = r->latency_ps;
            if ((status = fill_jitter(f, r->jitter, r->jitter_points, &to->jitter, &to->jitter_points)))
                return status;
            to->ps_per_byte_q24 = r->rate_bps ? fbx_ethernet_ps_per_byte(r->rate_bps) : 0;
        }
        n->region_count = region - n->first_region;
        status = fbxi_profile_windows(c, i, c->region_count, &n->mw_count, &n->lut_count, &n->mw_max_bytes);
        if (status)
            return status;
    }
    for (uint32_t i = 0; i < c->link_count; i++) {
        const struct fbx_config_link *from = &c->links[i];
        struct fbxl_link *l = &f->links[i];
        snprintf(l->name, sizeof l->name, "%s", from->name);
        l->node[0] = from->node_a;
        l->node[1] = from->node_b;
        snprintf(l->port[0], FBX_PORT_BYTES, "%s", from->port_a ? from->port_a : "");
        snprintf(l->port[1], FBX_PORT_BYTES, "%s", from->port_b ? from->port_b : "");
        l->kind = from->kind;
        l->home = from->home;
        link_values(from, l->value);
        if ((status = fill_jitter(f, from->jitter, from->jitter_points, &l->jitter, &l->jitter_points)))
            return status;
    }
    return 0;
}

static int make_regions(fbx_fabric *f)
{
    for (uint32_t i = 0; i < f->region_count; i++) {
        char path[400];
        uint64_t bytes = f->region_facts[i].bytes, bits = (((bytes + FBX_COMMIT_BYTES - 1) >> FBX_COMMIT_SHIFT) + 7) / 8;
        if (fbxi_is_away(f, f->region_facts[i].node))
            continue;
        snprintf(path, sizeof path, "%s/fabrex@%u@%s@%016llx@r%u", f->directory, f->header->uid, f->name,
                 (unsigned long long)f->header->instance, i);
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return fbxi_fail_system(FBX_E_SYSTEM, "cannot make a region's file in %s", f->directory);
        int failed = ftruncate(fd, (off_t)(bytes + align_up(bits, 4096)));
        int system = errno;
        close(fd);
        errno = system;
        if (failed)
            return fbxi_fail_system(FBX_E_NO_MEMORY, "%s does not hold sparse files of %llu bytes", f->directory,
                                    (unsigned long long)bytes);
    }
    return 0;
}

int fbx_fabric_create(const struct fbx_config *c, fbx_fabric **out)
{
    const char *directory = directory_or_default(c->directory);
    char path[400], temporary[480];
    int status = control_path(directory, c->name, path, sizeof path);
    if (!status)
        status = check_config(c);
    if (!status)
        status = check_machines(c);
    if (status)
        return status;
    const int hidden = (c->flags & FBX_PRIVATE) != 0;
    if (hidden && c->flags & FBX_PERSISTENT)
        return fbxi_fail(FBX_E_INVALID, "a private fabric cannot outlive its creator");
    struct stat there;
    if (!hidden && !stat(path, &there) && fbx_fabric_reclaim(directory, c->name) == 0 && !stat(path, &there))
        return fbxi_fail(FBX_E_EXISTS, "a fabric '%s' is there already", c->name);
    uint64_t instance = 0;
    while (!instance)
        if (getrandom(&instance, sizeof instance, 0) != sizeof instance)
            return fbxi_fail_system(FBX_E_SYSTEM, "no random numbers");

    fbx_fabric *f = fabric_new(directory);
    if (!f)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    f->creator = 1;
    snprintf(temporary, sizeof temporary, "%s/fabrex@%u@%s@%016llx@new", directory, (unsigned)getuid(), c->name,
             (unsigned long long)instance);
    f->fd = hidden ? memfd_create(c->name, MFD_CLOEXEC)
                   : open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->fd < 0) {
        status = fbxi_fail_system(system_code(FBX_E_NOT_FOUND), "cannot make a file in %s", directory);
        fbx_poke(&f->closed, 1);
        fbx_fabric_free(f);
        return status;
    }
    /* From here on whoever finds the file sees that somebody is at it. */
    if (fbxi_session_reserve(f->fd, 0)) {
        status = fbxi_fail_system(FBX_E_SYSTEM, "the files of %s cannot be locked", directory);
        goto fail;
    }

    /* Where everything goes. */
    struct fbxl_header layout;
    memset(&layout, 0, sizeof layout);
    const uint32_t clients = c->client_limit ? c->client_limit : 1024, sessions = c->node_count + clients;
    const struct { uint32_t stride, capacity, eager; } tables[FBXL_TABLES] = {
        [FBXL_NODES] = {sizeof(struct fbxl_node), c->node_count, 1},
        [FBXL_REGIONS] = {sizeof(struct fbxl_region), c->region_count, 1},
        [FBXL_LINKS] = {sizeof(struct fbxl_link), c->link_count, 1},
        [FBXL_DIRECTIONS] = {sizeof(struct fbxl_direction), c->link_count * 2, 1},
        [FBXL_BUCKETS] = {4, BUCKETS, 1},
        [FBXL_SESSIONS] = {sizeof(struct fbxl_session), sessions < 65000 ? sessions : 65000, 0},
        [FBXL_REQUESTERS] = {sizeof(struct fbxl_requester), sessions < 65000 ? sessions : 65000, 0},
        [FBXL_LANES] = {sizeof(struct fbxl_lane), sessions * 4, 0},
        [FBXL_BUFFERS] = {sizeof(struct fbxl_buffer), c->buffer_limit ? c->buffer_limit : 1u << 18, 0},
        [FBXL_NAMES] = {sizeof(struct fbxl_name), c->name_limit ? c->name_limit : 1u << 17, 0},
    };
    static const int order[FBXL_TABLES] = {FBXL_NODES, FBXL_REGIONS, FBXL_LINKS, FBXL_DIRECTIONS, FBXL_BUCKETS,
        FBXL_SESSIONS, FBXL_REQUESTERS, FBXL_LANES, FBXL_BUFFERS, FBXL_NAMES};
    uint64_t at = 4096, eager_end = 0;
    for (int k = 0; k < FBXL_TABLES; k++) {
        int i = order[k];
        layout.table[i].offset = at;
        layout.table[i].stride = tables[i].stride;
        layout.table[i].capacity = tables[i].capacity;
        fbx_poke(&layout.table[i].high, tables[i].eager ? tables[i].capacity : 0);
        at += (uint64_t)tables[i].stride * tables[i].capacity;
        if (i == FBXL_BUCKETS) {
            layout.topology_offset = align_up(at, 64);
            layout.topology_bytes = c->topology_bytes;
            at = layout.topology_offset + c->topology_bytes;
            layout.extension[0] = (struct fbxl_extension){FBXL_EVENTS, 1, align_up(at, 64), sizeof(struct fbxl_events)};
            at = layout.extension[0].offset + layout.extension[0].bytes;
            eager_end = at;
        }
        at = align_up(at, i == FBXL_NODES ? 64 : 4096);
    }
    layout.heap_offset = align_up(at, 4096);
    layout.heap_bytes = HEAP_BYTES;
    layout.control_bytes = layout.heap_offset + layout.heap_bytes;

    layout.version = FBX_LAYOUT_VERSION;
    layout.header_bytes = sizeof layout;
    layout.layout_hash = fbxi_layout_hash();
    layout.page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
    layout.line_bytes = FBX_LINE;
    layout.instance = instance;
    layout.uid = (uint32_t)getuid();
    layout.creator_pid = (uint32_t)getpid();
    layout.creator_start = fbxi_process_start(layout.creator_pid);
    read_id("/proc/sys/kernel/random/boot_id", layout.boot_id);
    read_id("/etc/machine-id", layout.machine_id);
    layout.flags = (c->flags & FBX_PERSISTENT ? 0 : FBXL_OWNED) | (c->flags & FBX_TIMING ? FBXL_TIMING : 0) |
                   (c->flags & FBX_AUTO_WINDOWS ? FBXL_AUTO_WINDOWS : 0) | (c->flags & FBX_STRICT ? FBXL_STRICT : 0) |
                   (c->flags & (FBX_NO_SERVICE | FBX_PRIVATE));
    const char *fence = getenv("FABREX_EXPLICIT_FENCE");
    if ((fence && fence[0] == '1') || fbxi_membarrier_register())
        layout.flags |= FBXL_EXPLICIT_FENCE;
    /* The adversary needs delays: without time they are counted in operations, and the model says of how many. */
    if (!(c->flags & FBX_TIMING) && c->ordering == FBX_ADVERSARIAL && c->clock == FBX_REAL)
        layout.flags |= FBXL_TIMING | FBXL_COUNTED;
    layout.ordering = c->ordering;
    layout.seed = c->seed;
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    layout.created_unix_ns = (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec;
    snprintf(layout.name, sizeof layout.name, "%s", c->name);
    status = fbxi_clock_measure(&layout, c->clock, c->dilation_num ? c->dilation_num : 1,
                                c->dilation_den ? c->dilation_den : 1);
    if (status)
        goto fail;

    f->mapped_bytes = layout.control_bytes;
    if (ftruncate(f->fd, (off_t)layout.control_bytes)) {
        status = fbxi_fail_system(FBX_E_NO_MEMORY, "%s does not hold sparse files of %llu bytes", directory,
                                  (unsigned long long)layout.control_bytes);
        goto fail;
    }
    if ((status = fbxi_commit_control(f, 0, eager_end)))
        goto fail;
    void *map = map_file(f);
    if (map == MAP_FAILED) {
        status = fbxi_fail_system(FBX_E_NO_MEMORY, "cannot map the control segment");
        goto fail;
    }
    f->base = map;
    f->header = map;
    memcpy(map, &layout, sizeof layout);
    if (c->topology_bytes)
        memcpy(fbxi_at(f, layout.topology_offset), c->topology, c->topology_bytes);
    locate_tables(f);
    if ((status = fill(f, c)) || (status = keep_facts(f)) || (status = make_machines(f, c)) || (status = locate_machines(f)) ||
        (status = fbxi_session_open(f)) || (!hidden && (status = make_regions(f))))
        goto fail;
    fbxi_clock_load(&f->clock, f->header);
    fbxi_event(f, &(struct fbxi_event){FBX_EVENT_FABRIC_UP, UINT32_MAX, UINT32_MAX, UINT32_MAX, (uint64_t)getpid(), 0});
    /* Everything is there. Pairs with: the first look at the magic in map_control(). */
    fbx_publish(&f->header->magic, FBX_MAGIC);
    if (hidden) {
        if ((status = start(f)))
            goto fail;
        *out = f;
        return 0;
    }
    if (link(temporary, path)) {
        status = errno == EEXIST ? fbxi_fail(FBX_E_EXISTS, "a fabric '%s' is there already", c->name)
                                 : fbxi_fail_system(FBX_E_SYSTEM, "cannot name the fabric '%s'", c->name);
        goto fail;
    }
    unlink(temporary);
    if ((status = start(f)))
        goto fail_named;
    *out = f;
    return 0;

fail_named:
    unlink(path);
fail:
    if (!hidden) {
        unlink(temporary);
        remove_segments(directory, (uint32_t)getuid(), c->name, instance);
    }
    fbx_poke(&f->closed, 1);
    fbx_fabric_free(f);
    return status;
}

/* ---- looking -------------------------------------------------------------------------------------------------------- */

static void info(fbx_fabric *f, struct fbx_fabric_info *out)
{
    struct fbxl_header *h = f->header;
    memset(out, 0, sizeof *out);
    memcpy(out->name, h->name, sizeof out->name);
    snprintf(out->directory, sizeof out->directory, "%s", f->directory);
    out->instance = h->instance;
    out->control_bytes = h->control_bytes;
    for (uint32_t i = 0; i < f->region_count; i++) {
        out->memory_bytes += f->region_facts[i].bytes;
        out->committed_bytes += fbx_peek(&f->regions[i].committed);
    }
    out->created_unix_ns = h->created_unix_ns;
    out->seed = h->seed;
    out->node_count = f->node_count;
    out->region_count = f->region_count;
    out->link_count = f->link_count;
    for (uint32_t i = 0; i < fbxi_high(f, FBXL_SESSIONS); i++)
        out->session_count += fbx_observe(&f->sessions[i].state) == FBXL_LIVE && fbx_session_alive(f, i);
    for (uint32_t i = 0; i < fbxi_high(f, FBXL_REQUESTERS); i++)
        out->requester_count += fbx_observe(&f->requesters[i].state) == FBXL_LIVE;
    for (uint32_t i = 0; i < f->link_count; i++) {
        uint64_t value[FBX_LINK_KEYS];
        out->links_changed += fbxi_link_current(f, i, value) && memcmp(value, f->link_facts[i].value, sizeof value) != 0;
    }
    for (uint32_t i = 0; i < f->node_count; i++)
        out->queue_count += fbx_peek(&f->nodes[i].queue_count);
    out->uid = h->uid;
    out->creator_pid = h->creator_pid;
    out->flags = (h->flags & FBXL_OWNED ? 0 : FBX_PERSISTENT) | ((h->flags & (FBXL_TIMING | FBXL_COUNTED)) == FBXL_TIMING ? FBX_TIMING : 0) |
                 (h->flags & FBXL_AUTO_WINDOWS ? FBX_AUTO_WINDOWS : 0) | (h->flags & FBXL_STRICT ? FBX_STRICT : 0);
    out->ordering = h->ordering;
    out->clock = h->clock_kind;
    out->owner_alive = (uint32_t)owner_alive(f);
    out->closed = (fbx_observe(&h->state) & FBXL_CLOSED) != 0 || earlier_boot(f);
    out->corrupt_resets = fbx_peek(&h->corrupt_resets);
    out->takeovers = fbx_peek(&h->takeovers);
    out->reservations_clamped = fbx_peek(&h->reservations_clamped);
    out->sessions_reaped = fbx_peek(&h->sessions_reaped);
    out->control_epoch = fbx_peek(&h->control_epoch);
    out->tick_hz = h->tick_hz;
    out->tick_cost_ps = h->tick_cost_ps;
    out->fabric_id = f->identity_of_fabric;
    out->now_ps = f->clock.ps_per_tick_q32 ? fbxi_now(&f->clock) : 0;
}

int fbx_fabric_info(fbx_fabric *f, struct fbx_fabric_info *out)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    info(f, out);
    return 0;
}

int fbx_fabric_probe(const char *directory, const char *name, struct fbx_fabric_info *out)
{
    fbx_fabric *f = NULL;
    int status = open_control(directory, name, &f);
    if (status)
        return status;
    fbxi_clock_load(&f->clock, f->header);
    info(f, out);
    fbx_poke(&f->closed, 1);
    fbx_fabric_free(f);
    return 0;
}

const void *fbx_fabric_topology(fbx_fabric *f, uint64_t *bytes)
{
    *bytes = f->header->topology_bytes;
    return fbxi_at(f, f->header->topology_offset);
}

uint64_t fbx_fabric_now(fbx_fabric *f) { return fbxi_now(&f->clock); }

void fbx_fabric_slept(fbx_fabric *f, uint64_t ns) { fbxi_slept(&f->clock, ns); }

int fbx_virtual_set(fbx_fabric *f, uint64_t now_ps)
{
    if (f->clock.kind != FBX_VIRTUAL)
        return fbxi_fail(FBX_E_INVALID, "the fabric's clock is not virtual");
    f->clock.virtual_ps = now_ps;
    return 0;
}

uint64_t fbx_layout_hash(void) { return fbxi_layout_hash(); }

int fbx_node_find(fbx_fabric *f, const char *name)
{
    for (uint32_t i = 0; i < f->node_count; i++)
        if (!strcmp(f->node_facts[i].name, name))
            return (int)i;
    return fbxi_fail(FBX_E_NOT_FOUND, "no node '%.64s' in fabric '%s'", name, f->name);
}

int fbx_link_find(fbx_fabric *f, const char *name)
{
    for (uint32_t i = 0; i < f->link_count; i++)
        if (!strcmp(f->link_facts[i].name, name))
            return (int)i;
    return fbxi_fail(FBX_E_NOT_FOUND, "no link '%.160s' in fabric '%s'", name, f->name);
}

int fbx_node_info(fbx_fabric *f, uint32_t node, struct fbx_node_info *out)
{
    if (node >= f->node_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no node %u", node);
    struct fbxl_node *n = &f->nodes[node];
    const struct fbxl_node *facts = &f->node_facts[node];
    memset(out, 0, sizeof *out);
    memcpy(out->name, facts->name, sizeof out->name);
    out->kind = facts->kind;
    out->profile = facts->profile;
    out->rank = facts->rank;
    out->state = fbx_observe(&n->state);
    out->incarnation = fbx_peek(&n->incarnation);
    out->machine = facts->machine;
    out->first_region = facts->first_region;
    out->region_count = facts->region_count;
    out->mw_count = facts->mw_count;
    out->lut_count = facts->lut_count;
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS), owner = fbx_observe(&n->owner);
    for (uint32_t i = 0; i < high; i++) {
        if (fbx_observe(&f->requesters[i].state) != FBXL_LIVE || f->requesters[i].node != node)
            continue;
        uint32_t session = fbx_observe(&f->requesters[i].session) - 1;
        if (i + 1 == owner && session < f->capacity[FBXL_SESSIONS])
            out->owner_pid = f->sessions[session].pid;
        else
            out->client_count++;
    }
    out->posted_dropped = fbx_peek(&n->posted_dropped);
    out->delivered = fbx_peek(&n->delivered);
    out->aer_correctable = fbx_peek(&n->aer_correctable);
    out->aer_nonfatal = fbx_peek(&n->aer_nonfatal);
    out->aer_fatal = fbx_peek(&n->aer_fatal);
    out->pending = fbx_peek(&n->pending);
    return 0;
}

int fbx_region_info(fbx_fabric *f, uint32_t region, struct fbx_region_info *out)
{
    if (region >= f->region_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no region %u", region);
    struct fbxl_region *r = &f->regions[region];
    const struct fbxl_region *facts = &f->region_facts[region];
    memset(out, 0, sizeof *out);
    memcpy(out->tier, facts->tier, sizeof out->tier);
    out->node = facts->node;
    out->index = facts->index;
    out->bytes = facts->bytes;
    out->gva = (uint64_t)(region + 1) << FBX_SLOT_SHIFT;
    out->bus = facts->bus;
    out->latency_ps = facts->latency_ps;
    out->committed = fbx_peek(&r->committed);
    out->allocated = fbx_peek(&r->allocated);
    return 0;
}

int fbx_link_info(fbx_fabric *f, uint32_t link, struct fbx_link_info *out)
{
    if (link >= f->link_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no link %u", link);
    const struct fbxl_link *l = &f->link_facts[link];
    if (!fbx_peek(&f->closed) && !fbx_peek(&f->forked)) {
        pthread_mutex_lock(&f->mutex);
        for (fbx_node *n = f->node_list; n; n = n->next)
            if (!fbx_peek(&n->closed))
                fbxi_publish_counts(n);
        pthread_mutex_unlock(&f->mutex);
    }
    memset(out, 0, sizeof *out);
    memcpy(out->name, l->name, sizeof out->name);
    memcpy(out->node, l->node, sizeof out->node);
    out->kind = l->kind;
    uint64_t value[FBX_LINK_KEYS];
    fbxi_link_current(f, link, value);
    out->gen = (uint32_t)value[FBX_LINK_GEN];
    out->lanes = (uint32_t)value[FBX_LINK_LANES];
    out->mps = (uint32_t)value[FBX_LINK_MPS];
    out->mrrs = (uint32_t)value[FBX_LINK_MRRS];
    out->rcb = (uint32_t)value[FBX_LINK_RCB];
    out->up = fbx_observe(&f->links[link].state) == 0;
    out->changed = memcmp(value, l->value, sizeof value) != 0;
    const struct fbx_pcie_link p = {out->gen, out->lanes, out->mps, out->mrrs, out->rcb};
    out->rate_bps = l->kind ? value[FBX_LINK_RATE_BPS] : fbx_pcie_tlp_bps(&p);
    out->delay_ps = value[FBX_LINK_DELAY_PS];
    for (int d = 0; d < 2; d++) {
        out->bytes[d] = fbx_peek(&f->directions[2 * link + (uint32_t)d].bytes);
        out->tlps[d] = fbx_peek(&f->directions[2 * link + (uint32_t)d].tlps);
        out->dropped[d] = fbx_peek(&f->directions[2 * link + (uint32_t)d].dropped);
    }
    fbxi_count_scalars(f, link, out->bytes, out->tlps);
    return 0;
}

int fbx_link_set(fbx_fabric *f, uint32_t link, int up)
{
    if (f->machines && link < f->link_count && !fbx_peek(&f->closed) && !fbx_peek(&f->forked))
        return fbxi_change_ask(f, &(struct fbx_change){.what = FBX_CHANGE_LINK, .index = link, .value = {up != 0}});
    return fbxi_link_set_here(f, link, up);
}

int fbx_link_configure(fbx_fabric *f, uint32_t link, uint32_t keys, const uint64_t *values)
{
    if (!f->machines || link >= f->link_count || fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_link_configure_here(f, link, keys, values);
    struct fbx_change c = {.what = FBX_CHANGE_CONFIGURE, .index = link, .keys = keys};
    for (uint32_t key = 0; key < FBX_LINK_KEYS; key++)
        if (keys >> key & 1)
            c.value[key] = values[key];
    return fbxi_change_ask(f, &c);
}

int fbxi_link_set_here(fbx_fabric *f, uint32_t link, int up)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (link >= f->link_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no link %u", link);
    struct fbxl_link *l = &f->links[link];
    int status = fbxi_control_lock(f), changed;
    if (status)
        return status;
    changed = !fbx_observe(&l->state) != !!up;
    /* Down again after BUSY must wait again: the state alone does not say that marks have cleared. */
    if (!up || fbx_observe(&l->state)) {
        if (!up && !fbx_observe(&l->state))
            fbx_poke(&l->down_at_ps, fbxi_now(&f->clock));
        /* Pairs with: fbx_observe(&link->state) in resolve(). Breaks: a route over a dead link. */
        fbx_publish(&l->state, up ? 0 : 1);
        fbx_add(&l->generation, 1);
        status = fbxi_invalidate_dependents(f, link);
        if (!up)
            fbxi_drop_undelivered(f, link);
    }
    fbxi_control_unlock(f);
    if (changed) {
        fbxi_event(f, &(struct fbxi_event){up ? FBX_EVENT_LINK_UP : FBX_EVENT_LINK_DOWN, UINT32_MAX, UINT32_MAX, link, 0, 0});
        fbxi_ntb_links_changed(f, link, UINT32_MAX);
    }
    return status;
}
