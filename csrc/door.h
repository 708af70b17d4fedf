/* SPDX-License-Identifier: Apache-2.0
 *
 * The door of this machine's agent: a Unix socket (SOCK_SEQPACKET) where processes of the machine ask it for connections to
 * other machines (socket.c) and for changes of the fabric (change.c). */
#ifndef FBX_DOOR_H
#define FBX_DOOR_H
#include "internal.h"

/* Where it is; -1: there is no room for the path. */
int fbxi_door_path(char *out, uint64_t room, const char *directory, uint32_t uid, uint64_t instance);
/* A connection to the agent, which does not block; -1 if there is no agent. */
int fbxi_door(const fbx_fabric *f);
#endif
