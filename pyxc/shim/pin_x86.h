/* Pinned page tables of x86 PV domains. */
#ifndef PYXC_SHIM_PIN_X86_H
#define PYXC_SHIM_PIN_X86_H

/* levels[i]: 1..4, the table level to pin mfns[i] as. At most 1,024 a call. */
static int pyxc_pin_tables(xc_interface *xch, uint32_t domid, uint32_t nr, const uint8_t *levels,
                           const uint64_t *mfns)
{
    static const unsigned int pin_op[] = {
        0, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE,
    };
    struct mmuext_op ops[1024];
    uint32_t i;

    if ( nr > 1024 )
    {
        errno = E2BIG;
        return -1;
    }
    memset(ops, 0, nr * sizeof(*ops));
    for ( i = 0; i < nr; ++i )
    {
        if ( levels[i] < 1 || levels[i] > 4 )
        {
            errno = EINVAL;
            return -1;
        }
        ops[i].cmd = pin_op[levels[i]];
        ops[i].arg1.mfn = mfns[i];
    }
    return xc_mmuext_op(xch, ops, nr, domid);
}

#endif
