/*
 * What a suspended arm64 guest's own vCPUs run, because nobody else can: code that reads, or writes, the registers
 * of which no hypercall knows. Assembled by build.py with the register lists of saverestore/arm64_registers.py
 * before it: a macro for each group (FIRST, SYSTEM, TIMER …) that calls the macro it is given with slot and register,
 * for each of them, and symbols for slots and control words (SLOT_…, CONTROL_…).
 *
 * A stub is copied to the first of the scratch pages, the vectors to the second, and each vCPU has one of the
 * following ones for its data: control words, then a slot for each register. It runs at EL1 with the MMU off and
 * all interrupts masked, at the physical address of the page, and never returns: it ends in a loop, with its verdict
 * in x30, which we read through Xen.
 *
 *     entry       x0: the data page; x1: the GIC's frame with what is this vCPU's (v3: SGI frame of its redistributor,
 *                 v2: distributor); x2: flags, as of layout.py; x3: number of the vCPU
 *     meanwhile   x25 to x28: the same four;  x4 to x7, x16: scratch
 *     end         x30: 0x600d when all went well; 0xdead after an exception, then x29: ESR_EL1
 */
    .section .rodata.pysave_stubs, "a", %progbits

    .equ DONE, 0x600d
    .equ FAULTED, 0xdead
    .equ GICD_BASE_HIGH, 0x0300         /* GUEST_GICD_BASE, 0x03001000: xen/public/arch-arm.h */
    .equ GICD_BASE_LOW, 0x1000
    .equ GICC_BASE_LOW, 0x2000          /* GUEST_GICC_BASE, 0x03002000 */
    .equ CPACR_OPEN, 3 << 20            /* FPEN: vector registers do not trap */
    .equ HYPERCALL, 0xea1               /* xen/public/arch-arm.h: the immediate of hvc; x16 says which */
    .equ HYPERCALL_VCPU_OP, 24
    .equ HYPERCALL_EVTCHN_OP, 32
    .equ VCPUOP_REGISTER_VCPU_INFO, 10
    .equ EVTCHNOP_CLOSE, 3
    .equ EVTCHNOP_SEND, 4
    .equ EVTCHNOP_BIND_IPI, 7
    .equ EVTCHNOP_UNMASK, 9
    .equ EVTCHNOP_SET_PRIORITY, 13
    .equ SGI_SELF, 0x02000000           /* v2, GICD_SGIR: to whoever asks */

/* ---- one register, from or into its slot ---- */

    .macro read slot, register
    mrs     x4, \register
    str     x4, [x25, #\slot]
    .endm

    .macro write slot, register
    ldr     x4, [x25, #\slot]
    msr     \register, x4
    .endm

    .macro read_vector slot, register
    str     \register, [x25, #\slot]
    .endm

    .macro write_vector slot, register
    ldr     \register, [x25, #\slot]
    .endm

/* Words of a frame of the GIC: x5 is the distributor, x26 what is the vCPU's own, x6 (v2) the CPU interface. */

    .macro read_distributor slot, offset
    ldr     w4, [x5, #\offset]
    str     w4, [x25, #\slot]
    .endm

    .macro write_distributor slot, offset
    ldr     w4, [x25, #\slot]
    str     w4, [x5, #\offset]
    .endm

    .macro read_private slot, offset
    ldr     w4, [x26, #\offset]
    str     w4, [x25, #\slot]
    .endm

    .macro write_private slot, offset
    ldr     w4, [x25, #\slot]
    str     w4, [x26, #\offset]
    .endm

    .macro read_interface slot, offset
    ldr     w4, [x6, #\offset]
    str     w4, [x25, #\slot]
    .endm

    .macro write_interface slot, offset
    ldr     w4, [x25, #\slot]
    str     w4, [x6, #\offset]
    .endm

    .macro frames_of_the_gic
    movz    x5, #GICD_BASE_HIGH, lsl #16
    movk    x5, #GICD_BASE_LOW
    movz    x6, #GICD_BASE_HIGH, lsl #16
    movk    x6, #GICC_BASE_LOW
    .endm

/* ---- beginning and end ---- */

    .macro arguments
    mov     x25, x0
    mov     x26, x1
    mov     x27, x2
    mov     x28, x3
    .endm

/* From here on an exception ends in our vectors, a page behind the stub's beginning (label 0). */
    .macro own_vectors
    adr     x4, 0b
    add     x4, x4, #0x1000
    msr     vbar_el1, x4
    isb
    .endm

    .macro open_vector_registers
    mov     x4, #CPACR_OPEN
    msr     cpacr_el1, x4
    isb
    .endm

/* The registers that we changed, or an exception would have, back to what their slots say. */
    .macro finish
    dsb     sy
    FIRST   write
    isb
    dsb     sy
    mov     x30, #DONE
1:  b       1b
    .endm

/* ---- hypercalls ---- */

/* A hypercall of the event channels on the structure at `argument` of the data page; its result goes to `result`. */
    .macro event_channel operation, argument, result
    mov     x0, #\operation
    add     x1, x25, #\argument
    mov     x16, #HYPERCALL_EVTCHN_OP
    hvc     #HYPERCALL
    str     x0, [x25, #\result]
    .endm

/* ---- reading: everything into its slot, the vCPU as it was ---- */

    .macro save interface_macro, interface
0:  arguments
    /* What an exception or we ourselves would change comes first, so that the vectors can put it back. */
    FIRST   read
    own_vectors
    SYSTEM  read
    TIMER   read
    COMPARED read
    open_vector_registers
    FLOAT   read
    VECTOR  read_vector
    frames_of_the_gic
    DISTRIBUTOR read_distributor
    PRIVATE read_private
    ENABLE  read_private
    \interface \interface_macro
    finish
    .endm

/* ---- writing: everything from its slot, into the vCPU of a fresh domain ---- */

    .macro load interface_macro, interface
0:  arguments
    own_vectors
    /* For us to compare with the saved ones: slots of their own. */
    FOUND   read
    open_vector_registers
    VECTOR  write_vector
    FLOAT   write
    SYSTEM  write

    /*
     * Timers fire as far in the future as they would have: the counter of the fresh domain began anew. Of the virtual
     * one only "enabled" is written back. One that had fired was masked by Xen when it injected the interrupt, and
     * whether that was still pending nobody can tell: written unmasked, it fires again.
     */
    mrs     x6, cntvct_el0
    ldr     x7, [x25, #SLOT_cntvct_el0]
    sub     x6, x6, x7
    ldr     x4, [x25, #SLOT_cntv_cval_el0]
    add     x4, x4, x6
    msr     cntv_cval_el0, x4
    ldr     x4, [x25, #SLOT_cntp_cval_el0]
    add     x4, x4, x6
    msr     cntp_cval_el0, x4
    ldr     x4, [x25, #SLOT_cntp_ctl_el0]
    msr     cntp_ctl_el0, x4
    isb
    ldr     x4, [x25, #SLOT_cntv_ctl_el0]
    and     x4, x4, #1
    msr     cntv_ctl_el0, x4
    isb

    /* The GIC: the distributor is one for all vCPUs; what enables interrupts comes after what says how they behave. */
    frames_of_the_gic
    tbz     x27, #FLAG_FIRST_VCPU, 2f
    DISTRIBUTOR write_distributor
2:  PRIVATE write_private
    ENABLE  write_private
    \interface \interface_macro
    isb
    dsb     sy

    /* Where Linux, which asks but once, believes its vcpu_info to be. */
    tbz     x27, #FLAG_VCPU_INFO, 3f
    mov     x0, #VCPUOP_REGISTER_VCPU_INFO
    mov     x1, x28
    add     x2, x25, #CONTROL_VCPU_INFO
    mov     x16, #HYPERCALL_VCPU_OP
    hvc     #HYPERCALL
    str     x0, [x25, #CONTROL_REGISTERED]
3:
    .endm

/*
 * The interrupts between processors that Linux may be waiting for: one that was pending when the domain suspended is
 * lost. All of these look for what there is to do, and one too many finds nothing.
 */
    .macro kick_v3
    mrs     x4, mpidr_el1
    and     x4, x4, #15
    mov     x7, #1
    lsl     x7, x7, x4
    .irp    sgi, 0, 1, 4, 5
    movz    x4, #(\sgi << 8), lsl #16
    orr     x4, x4, x7
    msr     S3_0_C12_C11_5, x4          /* ICC_SGI1R_EL1 */
    .endr
    isb
    .endm

    .macro kick_v2
    .irp    sgi, 0, 1, 4, 5
    movz    x4, #(SGI_SELF >> 16), lsl #16
    movk    x4, #\sgi
    str     w4, [x5, #0xf00]            /* GICD_SGIR */
    .endr
    .endm

/* ---- the five pieces that build.py hands out ---- */

    .macro piece name
    .balign 128                         /* or the vectors would not begin with their first entry */
    .global pysave_stub_\name
pysave_stub_\name:
    .endm

    .macro piece_end name
    .global pysave_stub_\name\()_end
pysave_stub_\name\()_end:
    .endm

    piece   save_v3
    save    read, INTERFACE_V3
    piece_end save_v3

    piece   save_v2
    save    read_interface, INTERFACE_V2
    piece_end save_v2

    piece   load_v3
    load    write, INTERFACE_V3
    kick_v3
    finish
    piece_end load_v3

    piece   load_v2
    load    write_interface, INTERFACE_V2
    kick_v2
    finish
    piece_end load_v2

/*
 * An event to the vCPU itself: Xen sets a bit in its vcpu_info, and so betrays where that is. The channel is a new
 * one, of the priority that the data page says, and is closed again.
 */
    piece   event
0:  arguments
    FIRST   read
    own_vectors
    str     w28, [x25, #CONTROL_BIND_IPI]
    str     wzr, [x25, #CONTROL_PORT]
    dsb     sy
    event_channel EVTCHNOP_BIND_IPI, CONTROL_BIND_IPI, CONTROL_BOUND
    ldr     w4, [x25, #CONTROL_PORT]
    str     w4, [x25, #CONTROL_SEND]
    str     w4, [x25, #CONTROL_PRIORITY]
    dsb     sy
    event_channel EVTCHNOP_SET_PRIORITY, CONTROL_PRIORITY, CONTROL_PRIORITIZED
    event_channel EVTCHNOP_UNMASK, CONTROL_SEND, CONTROL_UNMASKED
    event_channel EVTCHNOP_SEND, CONTROL_SEND, CONTROL_SENT
    event_channel EVTCHNOP_CLOSE, CONTROL_SEND, CONTROL_CLOSED
    finish
    piece_end event

/* The vectors: sixteen entries of 128 bytes, all the same. What an exception has changed is put back. */
    piece   vectors
    .rept   16
    .balign 128
    mrs     x29, esr_el1
    FIRST   write
    isb
    mov     x30, #FAULTED
4:  b       4b
    .endr
    piece_end vectors
    .previous
