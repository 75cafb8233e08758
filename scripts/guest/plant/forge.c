// SPDX-License-Identifier: GPL-2.0
/* Lies in the module's own unwind table. */

#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/orc_types.h>

#include "plant.h"

/* Bytes from the return address of plant_forged_leap() to that of its caller, plant_leaped() (functions.S). */
#define LEAP 16

/* The entry for the code at `ip`: the last one that begins there or before; the kernel has sorted the table. */
static struct orc_entry *entry_of(unsigned long ip)
{
	struct mod_arch_specific *arch = &THIS_MODULE->arch;
	struct orc_entry *found = NULL;
	unsigned int i;

	for (i = 0; i < arch->num_orcs; i++) {
		unsigned long begin = (unsigned long)&arch->orc_unwind_ip[i] + arch->orc_unwind_ip[i];

		if (begin <= ip)
			found = &arch->orc_unwind[i];
	}
	return found;
}

/* Writes through a mapping of its own: the table is read-only by now. */
static int overwrite(void *at, const void *from, size_t len)
{
	unsigned long offset = offset_in_page(at);
	struct page *pages[2];
	char *alias;

	pages[0] = vmalloc_to_page(at);
	pages[1] = vmalloc_to_page(at + len - 1);
	if (!pages[0] || !pages[1])
		return -EFAULT;
	alias = vmap(pages, pages[0] == pages[1] ? 1 : 2, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return -ENOMEM;
	memcpy(alias + offset, from, len);
	vunmap(alias);
	return 0;
}

static void end_here(struct orc_entry *entry)
{
	/* Until 6.4 it is one only where nobody knows the stack pointer (unwind_next_frame() in arch/x86/kernel/unwind_orc.c). */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	entry->sp_reg = ORC_REG_UNDEFINED;
	entry->end = 1;
#else
	entry->type = ORC_TYPE_END_OF_STACK;
#endif
}

static int forge(void (*function)(void), unsigned int behind, int further, bool end)
{
	/* The instruction that ends there, as for every return address. */
	struct orc_entry *entry = entry_of((unsigned long)function + behind - 1);
	struct orc_entry forged;

	if (!entry)
		return -ENOENT;
	forged = *entry;
	forged.sp_offset += further;
	if (end)
		end_here(&forged);
	return overwrite(entry, &forged, sizeof(forged));
}

int plant_forge(void)
{
	/* A slot that holds no return address. */
	int error = forge(plant_forged_offset, plant_forged_offset_behind, -16, false);

	if (!error)
		error = forge(plant_forged_end, plant_forged_end_behind, 0, true);
	if (!error)
		error = forge(plant_forged_leap, plant_forged_leap_behind, LEAP, false);
	return error;
}
