/* SPDX-License-Identifier: GPL-2.0 */
/* Functions of which each instruction matters. */

#include "plant.h"

/* `name` is the number of bytes from the first of `function` to `place`. */
.macro OFFSET name function place
	.pushsection .rodata
	.balign 4
SYM_DATA(\name, .long \place - \function)
	.popsection
.endm

	.text

/* Stays where the caller's frame pointer is saved and its own is not made. */
SYM_FUNC_START(plant_in_prologue)
	ENDBR
	push	%rbp
.Lstay:
	pause
	cmpl	$0, plant_held(%rip)
	jne	.Lstay
	mov	%rsp, %rbp
	pop	%rbp
	RET
SYM_FUNC_END(plant_in_prologue)

/*
 * Has an instruction that a probe can be put on: five bytes that no jump leads into. The optimizer of 6.1 takes the jump
 * to a return thunk for an indirect one, and leaves such a function alone; so it returns by itself.
 */
SYM_FUNC_START(plant_probed)
	ENDBR
	sub	$8, %rsp
.Lprobed:
	movl	$1, %eax
	add	$8, %rsp
	ANNOTATE_UNRET_SAFE
	ret
	int3
SYM_FUNC_END(plant_probed)
OFFSET plant_probed_site plant_probed .Lprobed

/* Sleeps with 24 bytes on the stack that are no return addresses. */
.macro FORGED name
SYM_FUNC_START(\name)
	ENDBR
	sub	$24, %rsp
	movq	$0, (%rsp)
	movq	$0, 8(%rsp)
	movq	$0, 16(%rsp)
	call	plant_sleep
.Lbehind_\name:
	add	$24, %rsp
	RET
SYM_FUNC_END(\name)
OFFSET \name\()_behind \name .Lbehind_\name
.endm

FORGED plant_forged_offset
FORGED plant_forged_end
FORGED plant_forged_leap

/* Between the two return addresses there are 8 bytes. */
SYM_FUNC_START(plant_leaped)
	ENDBR
	sub	$8, %rsp
	call	plant_forged_leap
	add	$8, %rsp
	RET
SYM_FUNC_END(plant_leaped)
