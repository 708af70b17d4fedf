/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames over a socket and over its successors. Neither blocks nor locks: its owner does. */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

int fbxi_stream_init(struct fbxi_stream *s, uint64_t tx_bytes, uint32_t rx_bytes)
{
    memset(s, 0, sizeof *s);
    s->fd = -1;
    s->tx_bytes = tx_bytes;
    s->rx_bytes = rx_bytes;
    /* Pages come as they are first used: a quiet stream costs little. */
    s->tx = mmap(NULL, tx_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->tx == MAP_FAILED) {
        s->tx = NULL;
        return -1;
    }
    s->rx = mmap(NULL, rx_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->rx == MAP_FAILED) {
        munmap(s->tx, tx_bytes);
        s->tx = s->rx = NULL;
        return -1;
    }
    return 0;
}

void fbxi_stream_drop(struct fbxi_stream *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    /* Half a frame is worth nothing: it comes again. */
    s->rx_at = s->rx_end = 0;
    s->direct = NULL;
    s->direct_left = 0;
}

void fbxi_stream_free(struct fbxi_stream *s)
{
    fbxi_stream_drop(s);
    if (s->tx)
        munmap(s->tx, s->tx_bytes);
    if (s->rx)
        munmap(s->rx, s->rx_bytes);
    s->tx = s->rx = NULL;
}

int fbxi_stream_room(const struct fbxi_stream *s, uint32_t payload)
{
    return s->tail + FBXW_HEADER + payload - s->head <= s->tx_bytes;
}

static void ring_write(struct fbxi_stream *s, uint64_t position, const void *from, uint64_t bytes)
{
    uint64_t at = position & (s->tx_bytes - 1), first = s->tx_bytes - at < bytes ? s->tx_bytes - at : bytes;
    memcpy(s->tx + at, from, first);
    memcpy(s->tx, (const uint8_t *)from + first, bytes - first);
}

static void ring_read(const struct fbxi_stream *s, uint64_t position, void *to, uint64_t bytes)
{
    uint64_t at = position & (s->tx_bytes - 1), first = s->tx_bytes - at < bytes ? s->tx_bytes - at : bytes;
    memcpy(to, s->tx + at, first);
    memcpy((uint8_t *)to + first, s->tx, bytes - first);
}

void fbxi_stream_put(struct fbxi_stream *s, struct fbxw_frame *f, const void *payload)
{
    uint8_t header[FBXW_HEADER];
    f->sequence = f->kind == FBXW_ACK ? 0 : ++s->sequence;
    f->ack = s->received;
    s->acknowledged = s->received;
    s->unacknowledged_bytes = 0;
    fbxw_encode(header, f);
    ring_write(s, s->tail, header, FBXW_HEADER);
    if (f->payload && payload != s->tx + ((s->tail + FBXW_HEADER) & (s->tx_bytes - 1)))
        ring_write(s, s->tail + FBXW_HEADER, payload, f->payload);
    const int only = f->kind == FBXW_ACK && (s->head == s->tail || s->acks_end == s->tail);
    s->tail += FBXW_HEADER + f->payload;
    s->acks_end = only ? s->tail : UINT64_MAX;
}

uint8_t *fbxi_stream_place(struct fbxi_stream *s, uint32_t payload)
{
    uint64_t at = (s->tail + FBXW_HEADER) & (s->tx_bytes - 1);
    return at + payload <= s->tx_bytes ? s->tx + at : NULL;
}

int fbxi_stream_push(struct fbxi_stream *s)
{
    while (s->sent != s->tail) {
        if (s->fd < 0)
            return 1;
        uint64_t at = s->sent & (s->tx_bytes - 1), bytes = s->tail - s->sent, first = s->tx_bytes - at;
        if (first > bytes)
            first = bytes;
        struct iovec parts[2] = {{s->tx + at, first}, {s->tx, bytes - first}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        /* What lies in one piece goes the kernel's short way. */
        ssize_t sent = bytes > first ? sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                                     : send(s->fd, s->tx + at, first, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? 1 : FBXI_BROKEN;
        }
        s->sent += (uint64_t)sent;
        s->bytes_out += (uint64_t)sent;
    }
    if (s->acks_end == s->tail)
        s->head = s->tail; /* nobody acknowledges an acknowledgement: waiting for that would look like silence */
    return 0;
}

int fbxi_stream_fill(struct fbxi_stream *s, int wait)
{
    if (s->fd < 0)
        return FBXI_BROKEN;
    if (s->rx_at == s->rx_end)
        s->rx_at = s->rx_end = 0;
    if (s->rx_bytes - s->rx_end < FBXW_FRAME && s->rx_at) {
        memmove(s->rx, s->rx + s->rx_at, s->rx_end - s->rx_at);
        s->rx_end -= s->rx_at;
        s->rx_at = 0;
    }
    struct iovec parts[2];
    size_t count = 0;
    if (s->direct_left)
        parts[count++] = (struct iovec){s->direct, s->direct_left};
    size_t room = s->rx_bytes - s->rx_end, asked = s->direct_left;
    if (s->sip && room > s->sip)
        room = s->sip;
    if (room)
        parts[count++] = (struct iovec){s->rx + s->rx_end, room};
    if (!count)
        return 0;
    asked += room;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    const int how = wait ? 0 : MSG_DONTWAIT;
    ssize_t got;
    do
        got = count == 1 ? recv(s->fd, parts[0].iov_base, parts[0].iov_len, how) : recvmsg(s->fd, &message, how);
    while (got < 0 && errno == EINTR && !wait);
    if (got < 0 && errno == EINTR)
        return 0;
    if (got == 0)
        return FBXI_BROKEN;
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : FBXI_BROKEN;
    s->bytes_in += (uint64_t)got;
    s->drained = (size_t)got < asked;
    uint32_t left = (uint32_t)got;
    if (s->direct_left) {
        uint32_t step = left < s->direct_left ? left : s->direct_left;
        s->direct += step;
        s->direct_left -= step;
        left -= step;
    }
    s->rx_end += left;
    return (int)got;
}

int fbxi_stream_next(struct fbxi_stream *s, struct fbxw_frame *f, const uint8_t **payload, uint32_t *available)
{
    while (s->rx_end - s->rx_at >= FBXW_HEADER) {
        if (fbxw_decode(s->rx + s->rx_at, f))
            return FBXI_GARBAGE;
        uint32_t here = s->rx_end - s->rx_at - FBXW_HEADER;
        const int again = f->sequence && f->sequence <= s->received;
        if (f->sequence > s->received + 1)
            return FBXI_GARBAGE; /* a gap: not what we have missed will come, but somebody who cannot count */
        *payload = s->rx + s->rx_at + FBXW_HEADER;
        *available = here < f->payload ? here : f->payload;
        if (here < f->payload)
            return again || !f->sequence ? 0 : 2;
        if (!again)
            return 1;
        s->rx_at += FBXW_HEADER + f->payload;
    }
    return 0;
}

void fbxi_stream_took(struct fbxi_stream *s, const struct fbxw_frame *f)
{
    if (f->sequence) {
        s->received = f->sequence;
        s->unacknowledged_bytes += FBXW_HEADER + f->payload;
    }
    if (s->direct) {
        s->direct = NULL; /* its header and beginning have left the buffer already */
        return;
    }
    s->rx_at += FBXW_HEADER + f->payload;
}

void fbxi_stream_direct(struct fbxi_stream *s, const struct fbxw_frame *f, uint8_t *to, uint32_t available)
{
    memcpy(to, s->rx + s->rx_at + FBXW_HEADER, available);
    s->rx_at = s->rx_end = 0;
    s->direct = to + available;
    s->direct_left = f->payload - available;
}

int fbxi_stream_acked(struct fbxi_stream *s, uint64_t ack)
{
    if (ack > s->sequence)
        return FBXI_GARBAGE;
    while (s->head != s->sent) {
        uint8_t header[FBXW_HEADER];
        ring_read(s, s->head, header, FBXW_HEADER);
        uint64_t end = s->head + FBXW_HEADER + fbxw_get32(header + 4);
        if (end > s->sent || fbxw_get64(header + 8) > ack)
            break;
        s->head = end;
    }
    return 0;
}

int fbxi_stream_resume(struct fbxi_stream *s, int fd, uint64_t received)
{
    fbxi_stream_drop(s);
    s->fd = fd;
    /* All that was sent counts as on its way until this says how far it came. */
    s->sent = s->tail;
    int status = fbxi_stream_acked(s, received);
    s->sent_again += s->tail - s->head;
    s->sent = s->head;
    return status;
}
