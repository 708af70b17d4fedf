/* SPDX-License-Identifier: Apache-2.0
 *
 * See door.h. A path of a socket has room for 107 bytes; a longer one is reached through its directory's descriptor. */
#include "door.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int fbxi_door_path(char *out, uint64_t room, const char *directory, uint32_t uid, uint64_t instance)
{
    int length = snprintf(out, room, "%s/fabrex@%u@net@%016llx@r-agent", directory, uid, (unsigned long long)instance);
    return length > 0 && (uint64_t)length < room ? 0 : -1;
}

int fbx_agent_path(fbx_fabric *f, char *out, uint64_t room)
{
    return fbxi_door_path(out, room, f->directory, f->uid, f->instance)
               ? fbxi_fail(FBX_E_INVALID, "%llu bytes are too few for the path", (unsigned long long)room) : 0;
}

int fbxi_door(const fbx_fabric *f)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int directory = -1;
    if (fbxi_door_path(at.sun_path, sizeof at.sun_path, f->directory, f->uid, f->instance)) {
        char through[32];
        directory = open(f->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
        snprintf(through, sizeof through, "/proc/self/fd/%d", directory);
        fbxi_door_path(at.sun_path, sizeof at.sun_path, through, f->uid, f->instance);
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
