/* Log-dirty. Its bitmap must lie in memory that a hypercall may write. */
#ifndef PYXC_SHIM_LOGDIRTY_H
#define PYXC_SHIM_LOGDIRTY_H

struct pyxc_dirty_bitmap {
    xc_hypercall_buffer_t hbuf;
    void *data;
    int nr_pages;
};

static struct pyxc_dirty_bitmap *pyxc_dirty_bitmap_new(xc_interface *xch, uint64_t nr_bits)
{
    DECLARE_HYPERCALL_BUFFER(void, data);
    struct pyxc_dirty_bitmap *bitmap = calloc(1, sizeof(*bitmap));

    if ( !bitmap )
        return NULL;
    bitmap->nr_pages = (int)((nr_bits + 8 * 4096 - 1) / (8 * 4096));
    data = xc_hypercall_buffer_alloc_pages(xch, data, bitmap->nr_pages);
    if ( !data )
    {
        free(bitmap);
        return NULL;
    }
    bitmap->hbuf = *HYPERCALL_BUFFER(data);
    bitmap->data = data;
    return bitmap;
}

static void pyxc_dirty_bitmap_free(xc_interface *xch, struct pyxc_dirty_bitmap *bitmap)
{
    xc__hypercall_buffer_free_pages(xch, &bitmap->hbuf, bitmap->nr_pages);
    free(bitmap);
}

static int pyxc_logdirty_enable(xc_interface *xch, uint32_t domid)
{
    return xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0);
}

static int pyxc_logdirty_off(xc_interface *xch, uint32_t domid)
{
    return xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0);
}

/* Effect: the bitmap holds what was written since the last call, and the hypervisor's is cleared. */
static int64_t pyxc_logdirty_clean(xc_interface *xch, uint32_t domid, struct pyxc_dirty_bitmap *bitmap,
                                   uint64_t nr_pfns, bool final, uint32_t *dirty_count)
{
    xc_shadow_op_stats_t stats = { 0 };
    int64_t rc = xc_logdirty_control(xch, domid, XEN_DOMCTL_SHADOW_OP_CLEAN, &bitmap->hbuf, nr_pfns,
                                     final ? XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL : 0, &stats);

    *dirty_count = stats.dirty_count;
    return rc;
}

#endif
