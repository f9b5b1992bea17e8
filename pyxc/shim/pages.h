/* Page types. */
#ifndef PYXC_SHIM_PAGES_H
#define PYXC_SHIM_PAGES_H

/* Exported by libxenctrl, declared only in its private header (tools/libs/ctrl/xc_private.h). */
extern int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);

/* The hypercall takes at most 1,024 frames; this any number. arr[i] becomes the type of that frame. */
static int pyxc_page_types(xc_interface *xch, uint32_t domid, uint64_t num, xen_pfn_t *arr)
{
    uint64_t done;

    for ( done = 0; done < num; done += 1024 )
    {
        uint64_t left = num - done;
        int rc = xc_get_pfn_type_batch(xch, domid, left < 1024 ? (unsigned int)left : 1024, arr + done);

        if ( rc )
            return rc;
    }
    return 0;
}

#endif
