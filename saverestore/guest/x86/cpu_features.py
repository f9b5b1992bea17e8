"""CPUID feature bits by name, and which of them one CPU policy has beyond another.

The names are those of the processors' manuals (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
A policy is what the X86_CPUID_POLICY and X86_MSR_POLICY records hold (xen/public/arch-x86/xen.h).
"""

from __future__ import annotations

import numpy as np

LEAF = np.dtype(
    [("leaf", "<u4"), ("subleaf", "<u4"), ("eax", "<u4"), ("ebx", "<u4"), ("ecx", "<u4"), ("edx", "<u4")]
)
MSR = np.dtype([("index", "<u4"), ("flags", "<u4"), ("value", "<u8")])

NO_SUBLEAF = 0xFFFF_FFFF

Place = tuple[int, int, str]
"""Leaf, subleaf, register."""


def _names(text: str) -> tuple[str | None, ...]:
    """One name a bit, from bit 0 on; "-" where a bit is no feature, or follows from what the guest itself does."""
    return tuple(None if name == "-" else name for name in text.split())


# OSXSAVE, OSPKE and APIC are the guest's own doing; HTT and CMP_LEGACY tell of topology; "hypervisor" is Xen's.
FEATURES: dict[Place, tuple[str | None, ...]] = {
    (0x1, 0, "ecx"): _names(
        "SSE3 PCLMULQDQ DTES64 MONITOR DS-CPL VMX SMX EIST TM2 SSSE3 CNXT-ID SDBG FMA CMPXCHG16B xTPR PDCM "
        "- PCID DCA SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES XSAVE - AVX F16C RDRAND -"
    ),
    (0x1, 0, "edx"): _names(
        "FPU VME DE PSE TSC MSR PAE MCE CX8 - - SEP MTRR PGE MCA CMOV PAT PSE-36 PSN CLFLUSH - DS ACPI MMX FXSR "
        "SSE SSE2 SS - TM - PBE"
    ),
    (0x7, 0, "ebx"): _names(
        "FSGSBASE TSC_ADJUST SGX BMI1 HLE AVX2 FDP-exception-only SMEP BMI2 ERMS INVPCID RTM PQM no-FPU-CS-DS MPX "
        "PQE AVX512F AVX512DQ RDSEED ADX SMAP AVX512-IFMA - CLFLUSHOPT CLWB Intel-PT AVX512PF AVX512ER AVX512CD SHA "
        "AVX512BW AVX512VL"
    ),
    (0x7, 0, "ecx"): _names(
        "PREFETCHWT1 AVX512-VBMI UMIP PKU - WAITPKG AVX512-VBMI2 CET-SS GFNI VAES VPCLMULQDQ AVX512-VNNI "
        "AVX512-BITALG TME AVX512-VPOPCNTDQ - LA57 - - - - - RDPID KL bus-lock-detect CLDEMOTE - MOVDIRI MOVDIR64B "
        "ENQCMD SGX-LC PKS"
    ),
    (0x7, 0, "edx"): _names(
        "- - AVX512-4VNNIW AVX512-4FMAPS FSRM UINTR - - AVX512-VP2INTERSECT SRBDS_CTRL MD_CLEAR RTM_ALWAYS_ABORT - "
        "TSX_FORCE_ABORT SERIALIZE hybrid TSXLDTRK - PCONFIG arch-LBR CET-IBT - AMX-BF16 AVX512-FP16 AMX-TILE "
        "AMX-INT8 IBRS/IBPB STIBP L1D_FLUSH ARCH_CAPABILITIES CORE_CAPABILITIES SSBD"
    ),
    (0x7, 1, "eax"): _names(
        "SHA512 SM3 SM4 RAO-INT AVX-VNNI AVX512-BF16 LASS CMPCCXADD arch-perfmon-ext - FZRM FSRS FSRCS - - - - FRED "
        "LKGS WRMSRNS NMI-source AMX-FP16 HRESET AVX-IFMA"
    ),
    (0x7, 2, "edx"): _names("PSFD IPRED_CTRL RRSBA_CTRL DDPD_U BHI_CTRL MCDT_NO"),
    (0xD, 1, "eax"): _names("XSAVEOPT XSAVEC XGETBV1 XSAVES XFD"),
    (0x8000_0001, 0, "ecx"): _names(
        "LAHF/SAHF - SVM extended-APIC CR8-legacy LZCNT SSE4A misaligned-SSE 3DNow-prefetch OSVW IBS XOP SKINIT "
        "WDT - LWP FMA4 TCE - NodeId - TBM TOPOEXT PERFCTR-core PERFCTR-NB - data-breakpoint-ext PERFTSC "
        "PERFCTR-LLC MWAITX"
    ),
    # Bits that only repeat those of leaf 1 are left out.
    (0x8000_0001, 0, "edx"): _names(
        "- - - - - - - - - - - SYSCALL - - - - - - - MP NX - MMX-ext - - FFXSR 1-GiB-pages RDTSCP - LM "
        "3DNow-ext 3DNow"
    ),
    (0x8000_0007, 0, "edx"): _names("- - - - - - - - invariant-TSC"),
    (0x8000_0008, 0, "ebx"): _names(
        "CLZERO IRPERF RSTR-FP-ERR-PTRS INVLPGB RDPRU - - - MCOMMIT WBNOINVD - - IBPB - IBRS STIBP IBRS-always "
        "STIBP-always IBRS-preferred IBRS-same-mode no-LMSLE - - PPIN SSBD virt-SSBD SSB_NO - PSFD BTC_NO IBPB_RET"
    ),
    (0x8000_0021, 0, "eax"): _names(
        "no-nested-data-bp - LFENCE-serialising - - - null-selector-clears-base - auto-IBRS"
    ),
}

MSR_BITS: dict[int, tuple[str, dict[int, str]]] = {
    0xCE: ("PLATFORM_INFO", {31: "CPUID-faulting"}),
    0x10A: (
        "ARCH_CAPABILITIES",
        {
            0: "RDCL_NO",
            1: "IBRS_ALL",
            3: "SKIP_L1DFL_VMENTRY",
            4: "SSB_NO",
            5: "MDS_NO",
            6: "IF_PSCHANGE_MC_NO",
            7: "TSX_CTRL",
            8: "TAA_NO",
            13: "SBDR_SSDP_NO",
            14: "FBSDP_NO",
            15: "PSDP_NO",
            17: "FB_CLEAR",
            20: "BHI_NO",
            24: "PBRSB_NO",
            26: "GDS_NO",
            27: "RFDS_NO",
        },
    ),
}


def _leaves_of(policy: bytes) -> dict[tuple[int, int], np.void]:
    found = {}
    for entry in np.frombuffer(policy, dtype=LEAF):
        subleaf = 0 if entry["subleaf"] == NO_SUBLEAF else int(entry["subleaf"])
        found[int(entry["leaf"]), subleaf] = entry
    return found


def lacking(needed: bytes, given: bytes) -> list[str]:
    """Features that the CPUID policy `needed` has and `given` has not, as "AVX2 (CPUID 0x7, EBX bit 5)"."""
    want, have = _leaves_of(needed), _leaves_of(given)
    found = []
    for (leaf, subleaf, register), names in FEATURES.items():
        if (leaf, subleaf) not in want:
            continue
        there = int(have[leaf, subleaf][register]) if (leaf, subleaf) in have else 0
        missing = int(want[leaf, subleaf][register]) & ~there
        where = f"CPUID {leaf:#x}" + (f".{subleaf}" if subleaf else "")
        found += [
            f"{name} ({where}, {register.upper()} bit {bit})"
            for bit, name in enumerate(names)
            if name is not None and missing >> bit & 1
        ]
    return found


def lacking_msr_bits(needed: bytes, given: bytes) -> list[str]:
    """Properties of the processor that the MSR policy `needed` promises and `given` does not."""
    want = {int(entry["index"]): int(entry["value"]) for entry in np.frombuffer(needed, dtype=MSR)}
    have = {int(entry["index"]): int(entry["value"]) for entry in np.frombuffer(given, dtype=MSR)}
    return [
        f"{name} (MSR {index:#x} {register}, bit {bit})"
        for index, (register, bits) in MSR_BITS.items()
        for bit, name in bits.items()
        if (want.get(index, 0) & ~have.get(index, 0)) >> bit & 1
    ]
