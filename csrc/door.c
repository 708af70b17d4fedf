/* SPDX-License-Identifier: Apache-2.0
 *
 * See door.h. A path of a socket has room for 107 bytes; a longer one is reached through its directory's descriptor. */
#include "door.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int fbx_agent_path(fbx_fabric *f, char *out, uint64_t room)
{
    int length = snprintf(out, room, "%s/fabrex@%u@net@%016llx@r-agent", f->directory, f->uid, (unsigned long long)f->instance);
    return length > 0 && (uint64_t)length < room ? 0 : fbxi_fail(FBX_E_INVALID, "%d bytes are needed for the path", length + 1);
}

int fbxi_door(const fbx_fabric *f)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int directory = -1;
    int length = snprintf(at.sun_path, sizeof at.sun_path, "%s/fabrex@%u@net@%016llx@r-agent", f->directory, f->uid,
                          (unsigned long long)f->instance);
    if (length < 0)
        return -1;
    if ((size_t)length >= sizeof at.sun_path) {
        directory = open(f->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
        snprintf(at.sun_path, sizeof at.sun_path, "/proc/self/fd/%d/fabrex@%u@net@%016llx@r-agent", directory, f->uid,
                 (unsigned long long)f->instance);
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at)) {
        close(fd);
        fd = -1;
    }
    if (directory >= 0)
        close(directory);
    return fd;
}
