package bpf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// frame is a function of a program: how much of the stack it uses, and which functions
// it calls, callbacks included.
type frame struct {
	bytes int
	calls []string
}

// TestStackFits counts as Linux 6.1 does: each frame is rounded up to 32 bytes, and the
// deepest chain of calls may use 512. Newer kernels allow more.
func TestStackFits(t *testing.T) {
	const limit, unit = 512, 32
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		frames := framesOf(p.Instructions)
		var deepest func(f string) (int, []string)
		deepest = func(f string) (most int, chain []string) {
			for _, called := range frames[f].calls {
				if n, c := deepest(called); n > most {
					most, chain = n, c
				}
			}
			own := (max(frames[f].bytes, 1) + unit - 1) / unit * unit
			return own + most, append([]string{fmt.Sprintf("%s %d", f, own)}, chain...)
		}
		n, chain := deepest(name)
		t.Logf("%d bytes: %s", n, strings.Join(chain, ", "))
		if n > limit {
			t.Errorf("program %s needs %d bytes of stack, of %d: %s", name, n, limit, strings.Join(chain, ", "))
		}
	}
}

func framesOf(ins asm.Instructions) map[string]*frame {
	frames := map[string]*frame{}
	var f *frame
	var onStack [11]bool // registers that were just made copies of the frame pointer
	for _, in := range ins {
		if s := in.Symbol(); s != "" {
			f = &frame{}
			frames[s] = f
		}
		switch {
		case in.IsFunctionCall() || in.IsLoadOfFunctionPointer():
			f.calls = append(f.calls, in.Reference())
		case in.OpCode.Class().IsLoad() && in.Src == asm.RFP, in.OpCode.Class().IsStore() && in.Dst == asm.RFP:
			f.bytes = max(f.bytes, -int(in.Offset))
		case in.OpCode.ALUOp() == asm.Add && in.OpCode.Source() == asm.ImmSource && onStack[in.Dst]:
			f.bytes = max(f.bytes, -int(in.Constant))
		}
		clear(onStack[:])
		if in.OpCode.ALUOp() == asm.Mov && in.OpCode.Source() == asm.RegSource && in.Src == asm.RFP {
			onStack[in.Dst] = true
		}
	}
	return frames
}
