/* SPDX-License-Identifier: Apache-2.0
 *
 * UCX between two processes over shared memory: ucp_get and ucp_put of 8 bytes, an atomic, puts of bulk. `ucx ROUNDS tcp`: over
 * loopback TCP, ucp_get alone.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

struct meeting { /* what the processes tell each other */
    uint32_t ready, done;
    uint64_t address, worker_bytes, key_bytes;
    char worker[8192], key[8192];
};

static void must(ucs_status_t status, const char *what)
{
    if (status != UCS_OK) {
        fprintf(stderr, "%s: %s\n", what, ucs_status_string(status));
        _exit(1);
    }
}

static ucp_worker_h worker;

static void finish(void *request)
{
    if (UCS_PTR_IS_ERR(request))
        must(UCS_PTR_STATUS(request), "operation");
    if (!request)
        return;
    while (ucp_request_check_status(request) == UCS_INPROGRESS)
        ucp_worker_progress(worker);
    ucp_request_free(request);
}

static const ucp_request_param_t plain;

static ucp_context_h open_worker(void)
{
    ucp_context_h context;
    ucp_params_t p = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_RMA | UCP_FEATURE_AMO64};
    ucp_worker_params_t w = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
    must(ucp_init(&p, NULL, &context), "ucp_init");
    must(ucp_worker_create(context, &w, &worker), "ucp_worker_create");
    return context;
}

static void target(struct meeting *m, int tcp)
{
    ucp_context_h context = open_worker();
    ucp_mem_map_params_t p = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS,
                              .length = BULK_MAX,
                              .flags = UCP_MEM_MAP_ALLOCATE};
    ucp_mem_attr_t a = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};
    ucp_mem_h memory;
    ucp_address_t *address;
    void *key;
    size_t bytes;
    must(ucp_mem_map(context, &p, &memory), "ucp_mem_map");
    must(ucp_mem_query(memory, &a), "ucp_mem_query");
    memset(a.address, 0, BULK_MAX);
    must(ucp_rkey_pack(context, memory, &key, &bytes), "ucp_rkey_pack");
    memcpy(m->key, key, bytes);
    m->key_bytes = bytes;
    must(ucp_worker_get_address(worker, &address, &bytes), "ucp_worker_get_address");
    memcpy(m->worker, address, bytes);
    m->worker_bytes = bytes;
    m->address = (uint64_t)(uintptr_t)a.address;
    __atomic_store_n(&m->ready, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&m->done, __ATOMIC_ACQUIRE)) {
        ucp_worker_progress(worker);
        if (!tcp) /* there the target does the work */
            usleep(200);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    int rounds = batches(argc, argv, 1);
    const int tcp = argc > 2 && !strcmp(argv[2], "tcp");
    setenv("UCX_TLS", tcp ? "tcp,self" : "posix,self", tcp);
    if (tcp)
        setenv("UCX_NET_DEVICES", "lo", 1);
    struct meeting *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        return 1;
    pid_t child = fork();
    if (!child)
        target(m, tcp);
    for (int i = 0; i < 10000 && !__atomic_load_n(&m->ready, __ATOMIC_ACQUIRE); i++) {
        if (waitpid(child, NULL, WNOHANG) == child)
            return 1;
        usleep(1000);
    }
    open_worker();
    ucp_ep_params_t p = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = (ucp_address_t *)m->worker};
    ucp_ep_h peer;
    ucp_rkey_h key;
    must(ucp_ep_create(worker, &p, &peer), "ucp_ep_create");
    must(ucp_ep_rkey_unpack(peer, m->key, &key), "ucp_ep_rkey_unpack");
    uint64_t word = 0, old = 0, far = m->address;
    char *data = malloc(BULK_MAX);
    memset(data, 1, BULK_MAX);
    finish(ucp_get_nbx(peer, &word, 8, far, key, &plain)); /* the connection is made here */
    finish(ucp_ep_flush_nbx(peer, &plain));
    const ucp_request_param_t fetch = {.op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_REPLY_BUFFER,
                                       .datatype = ucp_dt_make_contig(8),
                                       .reply_buffer = &old};
    for (int round = 0; round < rounds; round++) {
        if (tcp) {
            MEASURE("ucp_get_tcp", 8, 4000, finish(ucp_get_nbx(peer, &word, 8, far, key, &plain)));
            continue;
        }
        MEASURE("ucp_get", 8, 500000, finish(ucp_get_nbx(peer, &word, 8, far, key, &plain)));
        MEASURE("ucp_put", 8, 500000, finish(ucp_put_nbx(peer, &word, 8, far, key, &plain)));
        MEASURE("ucp_fetch_add", 8, 500000,
                finish(ucp_atomic_op_nbx(peer, UCP_ATOMIC_OP_ADD, &word, 1, far, key, &fetch)));
        for (unsigned i = 0; i < BULK_SIZES; i++)
            MEASURE("ucp_put", bulk_bytes[i], bulk_count(bulk_bytes[i]),
                    finish(ucp_put_nbx(peer, data, bulk_bytes[i], far, key, &plain)));
    }
    __atomic_store_n(&m->done, 1, __ATOMIC_RELEASE);
    waitpid(child, NULL, 0);
    return 0;
}
