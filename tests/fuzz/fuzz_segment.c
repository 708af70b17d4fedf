/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes taken as a control segment: opening, looking at and reclaiming them must answer and never crash. Inputs are laid over
 * a real fabric's first bytes, so that mutations get past the magic and the hash. */
#include "../c/fabric.h"

#include <fcntl.h>
#include <sys/stat.h>

static uint8_t *real;
static size_t real_bytes;

static void learn(void)
{
    fbx_fabric *f;
    if (test_fabric("model", FBX_AUTO_WINDOWS | FBX_PERSISTENT | FBX_NO_SERVICE, 1000, &f))
        abort();
    fbx_fabric_free(f);
    char path[128];
    snprintf(path, sizeof path, "%s/fabrex@%u@model", test_dir(), (unsigned)getuid());
    int fd = open(path, O_RDONLY);
    real_bytes = 1u << 16;
    real = malloc(real_bytes);
    if (fd < 0 || pread(fd, real, real_bytes, 0) < 4096)
        abort();
    close(fd);
    fbx_fabric_destroy(test_dir(), "model", 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!real)
        learn();
    char path[128];
    snprintf(path, sizeof path, "%s/fabrex@%u@fuzz", test_dir(), (unsigned)getuid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || pwrite(fd, real, real_bytes, 0) < 0 || ftruncate(fd, 2ll << 30))
        abort();
    /* Triples: where, and what is written there. */
    for (; size >= 4; data += 4, size -= 4) {
        off_t at = (data[0] | data[1] << 8) % (off_t)real_bytes;
        if (pwrite(fd, data + 2, 2, at) < 0)
            abort();
    }
    close(fd);
    struct fbx_fabric_info info;
    fbx_fabric *f = NULL;
    fbx_fabric_probe(test_dir(), "fuzz", &info);
    if (!fbx_fabric_open(test_dir(), "fuzz", &f)) {
        fbx_node *n;
        uint64_t value;
        if (!fbx_node_attach(f, "host0", FBX_ANY, &n)) {
            fbx_load(n, 1ull << 40, 8, &value);
            fbx_store(n, 2ull << 40, 8, 1);
            fbx_node_free(n);
        }
        fbx_fabric_free(f);
    }
    fbx_fabric_reclaim(test_dir(), "fuzz");
    unlink(path);
    return 0;
}
