/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a fabric by descriptors that another process passed: the files' names may be out of reach, or gone. */
#include "fabric.h"

#include <fcntl.h>

int main(void)
{
    fbx_fabric *owner, *guest;
    fbx_node *h0, *h1;
    struct fbx_buffer buffer;
    uint64_t value;
    MUST(test_fabric("fds", FBX_AUTO_WINDOWS, 1000, &owner));
    MUST(fbx_node_attach(owner, "host0", FBX_OWNER, &h0));
    MUST(fbx_alloc(h0, 0, 4096, 64, "inbox", &buffer));
    MUST(fbx_store(h0, buffer.gva, 8, 41));
    int control = -1, regions[2] = {-1, -1};
    DIR *dir = opendir(test_dir());
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", test_dir(), entry->d_name);
        const char *region = strstr(entry->d_name, "@r");
        if (region)
            regions[atoi(region + 2)] = open(path, O_RDWR);
        else if (strstr(entry->d_name, "@fds"))
            control = open(path, O_RDWR);
    }
    closedir(dir);
    CHECK(control >= 0 && regions[0] >= 0 && regions[1] >= 0);

    MUST(fbx_fabric_open_fds(control, regions, 2, &guest));
    close(control); /* the fabric keeps its own */
    close(regions[0]);
    close(regions[1]);
    MUST(fbx_node_attach(guest, "host1", FBX_OWNER, &h1));
    MUST(fbx_fetch_add(h1, buffer.gva, 8, 1, &value));
    CHECK_EQ(value, 41);
    MUST(fbx_load(h0, buffer.gva, 8, &value));
    CHECK_EQ(value, 42);
    /* Memory that is committed only now goes through the descriptor as well. */
    MUST(fbx_store(h1, buffer.gva + (32u << 20), 8, 7));
    MUST(fbx_load(h0, buffer.gva + (32u << 20), 8, &value));
    CHECK_EQ(value, 7);
    fbx_node_free(h1);
    fbx_fabric_free(guest);
    CHECK(fbx_fabric_open_fds(0, NULL, 0, &guest) < 0); /* no fabric at all */
    CHECK(fbx_fabric_open_fds(-1, NULL, 0, &guest) < 0);
    fbx_node_free(h0);
    fbx_fabric_free(owner);
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
