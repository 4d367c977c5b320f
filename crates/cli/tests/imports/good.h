/* Made by msrgate compile --format c. */
#ifndef MSRGATE_FILTER_H
#define MSRGATE_FILTER_H

#include <linux/kvm.h>

/* args[0] of KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR); 0: refused accesses get #GP. */
#define MSRGATE_EXIT_REASONS 0x4

static unsigned char msrgate_bitmap_0[8] = {
	0xdf, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
};

static unsigned char msrgate_bitmap_1[8] = {
	0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
};

static unsigned char msrgate_bitmap_2[8] = {
	0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
};

/* For KVM_X86_SET_MSR_FILTER. The bitmaps are not written to. */
static inline void msrgate_fill(struct kvm_msr_filter *filter)
{
	*filter = (struct kvm_msr_filter){ .flags = 0x1 };
	filter->ranges[0].flags = 1;
	filter->ranges[0].nmsrs = 16;
	filter->ranges[0].base = 0x200;
	filter->ranges[0].bitmap = msrgate_bitmap_0;
	filter->ranges[1].flags = 2;
	filter->ranges[1].nmsrs = 1;
	filter->ranges[1].base = 0xc0000082;
	filter->ranges[1].bitmap = msrgate_bitmap_1;
	filter->ranges[2].flags = 3;
	filter->ranges[2].nmsrs = 3;
	filter->ranges[2].base = 0xc0000080;
	filter->ranges[2].bitmap = msrgate_bitmap_2;
}

#endif
