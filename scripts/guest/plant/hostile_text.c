// SPDX-License-Identifier: GPL-2.0
/* Code that is another one for a moment: its bytes, or the page that it is in. */

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include <asm/pgtable.h>

#include "hostile.h"

#define FLIP 0x01

/* How far behind the beginning of the function the changed byte is: where a jump begins, behind the mark for indirect branches, which
 * not every function has and the kernel turns into a NOP where nobody needs it, and the call of ftrace. */
static unsigned int offset_in(const u8 *code)
{
	static const u8 endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	static const u8 sealed[] = { 0x66, 0x0f, 0x1f, 0x00 };
	bool marked = !memcmp(code, endbr64, sizeof(endbr64)) || !memcmp(code, sealed, sizeof(sealed));

	return marked ? 9 : 5;
}

/* A byte of it by another address, at which it can be written. */
static u8 *alias;

static int begin_text(const char *name)
{
	u8 *byte = hostile_symbol(name);
	unsigned long at;
	struct page *page;
	u8 *map;

	if (!byte)
		return -ENOENT;
	byte += offset_in(byte);
	at = (unsigned long)byte;
	page = at >= MODULES_VADDR && at < MODULES_END ? vmalloc_to_page(byte) : virt_to_page(byte);
	map = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!map)
		return -ENOMEM;
	alias = map + offset_in_page(byte);
	return 0;
}

static int begin_old_text(void)
{
	return begin_text(OLD);
}

static int begin_new_text(void)
{
	return begin_text(NEW);
}

/* One instruction, so that the host, which may write here in between, never has its byte overwritten by an older one. */
static void flip(void)
{
	asm volatile("xorb %1, %0" : "+m"(*alias) : "i"(FLIP) : "memory");
}

static void text_on(unsigned long round)
{
	flip();
}

static void end_text(void)
{
	vunmap((void *)((unsigned long)alias & PAGE_MASK));
}

const struct attack hostile_text = { "text", begin_old_text, text_on, flip, end_text };
const struct attack hostile_new_text = { "new-text", begin_new_text, text_on, flip, end_text };

/* The entry of the page tables that maps it, the one that it has and the one that leads to a copy, and the copy. */
static unsigned long *entry, was, other;
static struct page *copy;
static unsigned int order;

static int begin_page(const char *name)
{
	unsigned long at = (unsigned long)hostile_symbol(name), bytes, frame;
	unsigned int level;
	u8 *copied;

	if (!at)
		return -ENOENT;
	entry = (unsigned long *)lookup_address(at, &level);
	if (!entry || level > PG_LEVEL_2M)
		return -EOPNOTSUPP;
	bytes = page_level_size(level);
	order = get_order(bytes);
	copy = alloc_pages(GFP_KERNEL, order);
	if (!copy)
		return -ENOMEM;
	copied = page_address(copy);
	memcpy(copied, (void *)(at & ~(bytes - 1)), bytes);
	copied[(at & (bytes - 1)) + offset_in((void *)at)] ^= FLIP;
	frame = PTE_PFN_MASK & ~(bytes - 1);
	was = READ_ONCE(*entry);
	other = (was & ~frame) | __pa(copied);
	return 0;
}

static int begin_old_page(void)
{
	return begin_page(OLD);
}

static int begin_new_page(void)
{
	return begin_page(NEW);
}

static void page_on(unsigned long round)
{
	WRITE_ONCE(*entry, other);
}

static void page_off(void)
{
	WRITE_ONCE(*entry, was);
}

/* Processors may still use the other translation, with which all but one byte is the same. */
static void end_page(void)
{
	void (*flush)(void) = hostile_symbol("flush_tlb_all");

	/* Without it the copy has to stay. */
	if (!flush)
		return;
	flush();
	__free_pages(copy, order);
}

const struct attack hostile_page = { "page", begin_old_page, page_on, page_off, end_page };
const struct attack hostile_new_page = { "new-page", begin_new_page, page_on, page_off, end_page };
