"""Spaces as MetaSchedule sees them: one knob function for both dialects.

MetaSchedule searches over traces of ``s_tir.Schedule``. Ours are not made that way: block sizes
are constants of the definition, which is written anew for each config; ``Schedule`` changes nested
sblocks of the function it was given in place, so that a second trace would start from the first
one's result; and GPU kernels are TIRx programs, which have no schedule primitives at all. What all
of them share is a point: one value for each knob.

So a space becomes a small s_tir function with one empty block, and a schedule that samples each
knob and writes it on the block. Its traces are what MetaSchedule's strategies, mutators, cost
models and databases work on; a trace and a point are the same thing in two forms (``knobs``), and
the point is what gets built and timed.
"""
