/* SPDX-License-Identifier: Apache-2.0
 *
 * pair.c - two hosts on one PCIe link, from C.
 *
 *   make examples && build/examples/pair
 *
 * Both nodes live in this one process to keep it short. Usually the other process calls fbx_fabric_open(NULL, name, &fabric)
 * and attaches its own node. */
#include <fabrex.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Functions return 0 or a negative code; fbx_last_error() says more. */
static void must(int status, const char *what)
{
    if (status) {
        fprintf(stderr, "%s: %s: %s (%s)\n", what, fbx_error_name(status), fbx_last_error()->text, fbx_error_hint(status));
        exit(1);
    }
}

int main(void)
{
    char name[32];
    snprintf(name, sizeof name, "pair-%ld", (long)getpid());

    /* Two hosts with 64 MiB each and a Gen4 x16 link of 100 ns between them. Times are picoseconds. */
    const struct fbx_config_node nodes[] = {{.name = "host0", .kind = FBX_HOST}, {.name = "host1", .kind = FBX_HOST}};
    const struct fbx_config_region regions[] = {{.node = 0, .tier = "dram", .bytes = 64u << 20, .latency_ps = 80000},
                                                {.node = 1, .tier = "dram", .bytes = 64u << 20, .latency_ps = 80000}};
    const struct fbx_config_link links[] = {{.name = "cable", .port_a = "ntb0", .port_b = "ntb0", .node_a = 0, .node_b = 1,
                                             .gen = 4, .lanes = 16, .mps = 256, .mrrs = 512, .rcb = 64, .delay_ps = 100000}};
    const struct fbx_config config = {.name = name, .flags = FBX_TIMING | FBX_AUTO_WINDOWS, .ordering = FBX_POSTED,
                                      .directory = getenv("FABREX_DIRECTORY"), .node_count = 2, .region_count = 2,
                                      .link_count = 1, .nodes = nodes, .regions = regions, .links = links};

    fbx_fabric *fabric;
    fbx_node *host0, *host1;
    struct fbx_buffer inbox;
    must(fbx_fabric_create(&config, &fabric), "create");
    must(fbx_node_attach(fabric, "host0", FBX_OWNER, &host0), "attach host0");
    must(fbx_node_attach(fabric, "host1", FBX_OWNER, &host1), "attach host1");
    must(fbx_alloc(host0, 0, 4096, 64, "inbox", &inbox), "alloc"); /* region 0: host0's dram */

    /* A posted write is on its way when the call returns, and visible when it has arrived. */
    must(fbx_store(host1, inbox.gva, 8, 42), "store");
    must(fbx_flush(host1, 0, 0), "flush"); /* node 0: host0 */
    uint64_t value, old;
    must(fbx_load(host0, inbox.gva, 8, &value), "load");
    must(fbx_fetch_add(host1, inbox.gva, 8, 1, &old), "fetch_add");
    printf("host0 sees %" PRIu64 "; host1 added 1 to %" PRIu64 "\n", value, old);

    struct fbx_estimate model;
    must(fbx_estimate(host1, FBX_LOAD, inbox.gva, 8, &model), "estimate");
    uint64_t best = UINT64_MAX; /* of some: the first ones find caches cold */
    for (int i = 0; i < 100; i++) {
        const uint64_t begin = fbx_fabric_now(fabric);
        must(fbx_load(host1, inbox.gva, 8, &value), "load");
        const uint64_t took = fbx_fabric_now(fabric) - begin;
        best = took < best ? took : best;
    }
    printf("a load over the link: modelled %" PRIu64 " ns, the fastest of 100 took %" PRIu64 " ns\n",
           model.completes_ps / 1000, best / 1000);

    must(fbx_link_set(fabric, 0, 0), "link down");
    int status = fbx_load(host1, inbox.gva, 8, &value);
    printf("with the link down: %s, and the value is 0x%" PRIx64 "\n", fbx_error_name(status), value);

    fbx_node_free(host1);
    fbx_node_free(host0);
    fbx_fabric_free(fabric); /* an owned fabric ends with its creator */
    return status == FBX_E_LINK_DOWN && value == UINT64_MAX && old == 42 ? 0 : 1;
}
