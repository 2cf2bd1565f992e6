/* How a batch changes hands. Everything here is called with the fill's lock held. */
#include "fill.h"

void queue_push(struct thaw_fill *fill, struct queue *queue, struct batch *batch) {
    uint32_t number = (uint32_t)(batch - fill->batches);

    batch->next = NONE;
    if (queue->head == NONE)
        queue->head = number;
    else
        fill->batches[queue->tail].next = number;
    queue->tail = number;
}

struct batch *queue_pop(struct thaw_fill *fill, struct queue *queue) {
    struct batch *batch;

    if (queue->head == NONE)
        return NULL;
    batch = &fill->batches[queue->head];
    queue->head = batch->next;
    return batch;
}

struct batch *fresh_pop(struct thaw_fill *fill) {
    return fill->fresh < fill->batch_count ? &fill->batches[fill->fresh++] : NULL;
}

/* Or found to be warm. The readers end with the last one. */
void batch_was_read(struct thaw_fill *fill) {
    if (--fill->unread == 0)
        pthread_cond_broadcast(&fill->room);
}

void buffer_take(struct thaw_fill *fill, struct batch *batch) {
    batch->buffer = fill->pool.free[--fill->pool.free_count];
}

void buffer_give(struct thaw_fill *fill, struct batch *batch) {
    fill->pool.free[fill->pool.free_count++] = batch->buffer;
    batch->buffer = NONE;
    pthread_cond_signal(&fill->room);
}
