/* SPDX-License-Identifier: Apache-2.0
 *
 * fabric.h - a small fabric for C tests: host0 - sw0 - host1 (and host2, if asked), in a directory of the test's own. */
#ifndef FBX_TESTS_FABRIC_H
#define FBX_TESTS_FABRIC_H

#include "check.h"
#include "fabrex.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char test_directory[64];

static const char *test_dir(void)
{
    if (!test_directory[0]) {
        strcpy(test_directory, access("/dev/shm", W_OK) ? "/tmp/fabrex-test-XXXXXX" : "/dev/shm/fabrex-test-XXXXXX");
        if (!mkdtemp(test_directory))
            abort();
    }
    return test_directory;
}

/* What is left in the directory; removes it if it is empty. */
static int test_leftovers(void)
{
    int count = 0;
    DIR *dir = opendir(test_dir());
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.') {
            fprintf(stderr, "left: %s\n", entry->d_name);
            count++;
        }
    closedir(dir);
    if (!count)
        rmdir(test_dir());
    return count;
}

static uint32_t test_clock = FBX_REAL, test_hosts = 2; /* of the fabrics made next; at most 3 hosts */

static int test_fabric(const char *name, uint32_t flags, uint64_t link_delay_ps, fbx_fabric **out)
{
    static const char *const names[] = {"host0", "host1", "host2"}, *const link_names[] = {"link0", "link1", "link2"};
    const uint32_t hosts = test_hosts;
    struct fbx_config_node nodes[4];
    struct fbx_config_region regions[3];
    struct fbx_config_link links[3];
    struct fbx_config config;
    memset(nodes, 0, sizeof nodes);
    memset(regions, 0, sizeof regions);
    memset(links, 0, sizeof links);
    memset(&config, 0, sizeof config);
    nodes[hosts].name = "sw0";
    nodes[hosts].kind = FBX_SWITCH;
    for (uint32_t i = 0; i < hosts; i++) {
        nodes[i].name = names[i];
        nodes[i].kind = FBX_HOST;
        regions[i].node = i;
        regions[i].tier = "dram";
        regions[i].bytes = 64u << 20;
        links[i].name = link_names[i];
        links[i].node_a = i;
        links[i].node_b = hosts;
        links[i].gen = 4;
        links[i].lanes = 16;
        links[i].mps = 256;
        links[i].mrrs = 512;
        links[i].rcb = 64;
        links[i].delay_ps = link_delay_ps;
    }
    config.name = name;
    config.directory = test_dir();
    config.flags = flags;
    config.clock = test_clock;
    config.node_count = hosts + 1;
    config.region_count = hosts;
    config.link_count = hosts;
    config.nodes = nodes;
    config.regions = regions;
    config.links = links;
    return fbx_fabric_create(&config, out);
}

/* A call that must succeed; says what the core says if it does not. */
#define MUST(call)                                                                                                        \
    do {                                                                                                                  \
        int must_status = (call);                                                                                         \
        CHECK(must_status == 0);                                                                                          \
        if (must_status)                                                                                                  \
            fprintf(stderr, "  %s: %s\n", fbx_error_name(must_status), fbx_last_error()->text);                           \
    } while (0)

#endif
