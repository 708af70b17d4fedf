/* SPDX-License-Identifier: Apache-2.0
 *
 * See change.h. The request is one message to the agent's door, "FXCH" and the change; its answer is one as well: a status, the
 * number that the change got, and words. Who makes changes, and in which order, is the agents' matter (fabrex/net). */
#include "change.h"

#include "door.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_NS 15000000000ull /* longer than the agent waits for the others */

int fbxi_change_ask(fbx_fabric *f, const struct fbx_change *c)
{
    uint8_t asked[FBXI_CHANGE_BYTES] = "FXCH", answer[16 + 256];
    const char *name = f->machines->of[f->machine].name;
    fbxw_put32(asked + 4, c->what);
    fbxw_put32(asked + 8, c->index);
    fbxw_put32(asked + 12, c->keys);
    for (uint32_t i = 0; i < FBXI_CHANGE_WORDS; i++)
        fbxw_put64(asked + 16 + 8 * i, c->value[i]);
    int fd = fbxi_door(f);
    if (fd < 0)
        return fbxi_fail(FBX_E_PEER_LOST, "no agent serves machine %s, so nothing of the fabric can be changed from here", name);
    ssize_t got = -1;
    if (send(fd, asked, sizeof asked, MSG_NOSIGNAL) == (ssize_t)sizeof asked) {
        const uint64_t begin = fbxi_monotonic_ns();
        struct pollfd wait = {fd, POLLIN, 0};
        while (fbxi_monotonic_ns() - begin < WAIT_NS) {
            if (poll(&wait, 1, 100) <= 0)
                continue;
            got = recv(fd, answer, sizeof answer - 1, MSG_DONTWAIT);
            if (got >= 0 || (errno != EAGAIN && errno != EINTR))
                break;
        }
    }
    close(fd);
    if (got >= 0 && got < 16)
        return fbxi_fail(FBX_E_PEER_LOST, "the agent of machine %s ended before it answered; the change may have been made", name);
    if (got < 0)
        return fbxi_fail(FBX_E_COMPLETION_TIMEOUT, "the agent of machine %s does not answer; the change may have been made", name);
    const int status = (int32_t)fbxw_get32(answer);
    answer[got] = 0;
    if (!status)
        return 0;
    if (!fbx_error_name(status))
        return fbxi_fail(FBX_E_CORRUPT, "the agent of machine %s answers %d, which is no code", name, status);
    return fbxi_fail(status, "%s", (const char *)answer + 16);
}
