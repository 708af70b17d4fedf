/* SPDX-License-Identifier: Apache-2.0
 *
 * One quiet thread per opened fabric. It delivers what is due at nodes of this process whose memory somebody looks at
 * without the API, and one of all the fabric's processes (whoever holds the leader's byte of the control file, which the
 * kernel releases at death) looks for sessions that died. No operation depends on it.
 */
#include "event.h"
#include "internal.h"
#include "ntb.h"
#include "registered.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>

int fbxi_end_if_orphan(fbx_fabric *f);

#define LEADER_BYTE ((1ll << 50) - 1)
#define LOOK_NS 25000000u
#define ASKS_NS 1000000u /* after an answer: waking up costs about a tenth of that, and a transfer asks again every few chunks */

static void *service(void *argument)
{
    fbx_fabric *f = argument;
    int leader = 0;
    fbx_au32 *wake = &f->sessions[f->session].wake;
    uint64_t served_ns = 0;
    uint64_t look_at = fbxi_monotonic_ns() + LOOK_NS;
    while (!fbx_observe(&f->service_stop)) {
        uint64_t nap = LOOK_NS, watched = fbx_swap(&f->watched, 0);
        (void)fbx_swap(wake, 0);
        if (fbxi_registered_serve(f))
            served_ns = fbxi_monotonic_ns();
        /* What we have posted to registers of nodes whose events somebody polls must fire there when it arrives. */
        for (uint32_t i = 0; watched && i < f->node_count; i++) {
            if (!(watched >> (i & 63) & 1) || !fbx_observe(&f->nodes[i].event_fds))
                continue;
            uint64_t now = fbxi_now(&f->clock);
            fbxi_deliver(f, i, now);
            uint64_t due = fbxi_next_due(f, i), ns = due > now ? (due - now) / 1000u + 1u : 1000u;
            if (due == UINT64_MAX)
                continue;
            fbx_or(&f->watched, 1ull << (i & 63));
            if (ns < nap)
                nap = ns;
        }
        pthread_mutex_lock(&f->mutex);
        for (fbx_node *n = f->node_list; n; n = n->next) {
            if (!fbx_peek(&n->closed) && fbx_observe(&n->event_fd))
                fbxi_ntb_look(n);
            if (fbx_peek(&n->closed) || !((n->kind == FBX_OWNER && fbx_observe(&n->shared->raw_views)) || fbxi_registers(f, n->index)))
                continue;
            uint64_t now = fbxi_now(&f->clock);
            fbxi_deliver(f, n->index, now);
            uint64_t due = fbxi_next_due(f, n->index), ns = 500000u;
            if (due != UINT64_MAX)
                ns = due > now ? (due - now) / 1000u + 1u : 1000u;
            if (ns < nap)
                nap = ns;
        }
        pthread_mutex_unlock(&f->mutex);
        uint64_t now_ns = fbxi_monotonic_ns();
        if (now_ns >= look_at && f->flags & FBXL_TIMING) {
            pthread_mutex_lock(&f->mutex);
            for (fbx_node *n = f->node_list; n; n = n->next)
                if (!fbx_peek(&n->closed))
                    fbxi_publish_counts(n);
            pthread_mutex_unlock(&f->mutex);
        }
        if (now_ns >= look_at) {
            if (!leader) {
                struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LEADER_BYTE, .l_len = 1};
                leader = !fcntl(f->fd, F_OFD_SETLK, &range);
            }
            if (leader) {
                fbxi_reap(f);
                fbxi_event_look(f);
                fbxi_end_if_orphan(f);
                /* Memory boxes and nodes that nobody is have no thread of their own to keep views of them current. */
                for (uint32_t i = 0; i < f->node_count; i++)
                    if (fbx_observe(&f->nodes[i].raw_views) && !fbx_observe(&f->nodes[i].owner))
                        fbxi_deliver(f, i, fbxi_now(&f->clock));
            }
            look_at = now_ns + (leader ? LOOK_NS : 4 * LOOK_NS);
        }
        /* Whoever asked once asks for the next piece at once: stay awake for it. */
        if (served_ns && now_ns - served_ns < ASKS_NS && !fbx_observe(&f->service_stop)) {
            for (int i = 0; i < 500 && !fbx_observe(wake); i++)
                fbx_relax();
            if (!fbx_observe(wake))
                sched_yield();
            continue;
        }
        if (nap > 0 && !fbx_observe(&f->service_stop)) {
            const uint64_t begin = fbxi_monotonic_ns();
            fbxi_futex_wait(wake, 0, nap);
            if (nap < LOOK_NS)
                fbxi_slept(&f->clock, fbxi_monotonic_ns() - begin); /* who wakes us often does not hurry time on */
        }
    }
    return NULL;
}

int fbxi_service_start(fbx_fabric *f)
{
    int failed = fbxi_thread_start(&f->service, service, f);
    if (failed) {
        errno = failed;
        return fbxi_fail_system(FBX_E_SYSTEM, "cannot start the service thread");
    }
    f->service_running = 1;
    return 0;
}

void fbxi_service_stop(fbx_fabric *f)
{
    if (!f->service_running)
        return;
    fbx_publish(&f->service_stop, 1);
    fbxi_service_wake(f);
    pthread_join(f->service, NULL);
    f->service_running = 0;
}
