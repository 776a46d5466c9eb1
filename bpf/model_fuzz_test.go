package bpf_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// FuzzModel is TestModel with seeds and events that the fuzzer chooses: each byte of moves
// draws one. What it finds is kept in testdata.
func FuzzModel(f *testing.F) {
	for _, seed := range []uint64{1, 2, 3, 19, 103, 1061, 1332, 2298, 2546} {
		f.Add(seed, []byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"))
	}
	bpf.NeedRoot(f)
	r := onThread(f)
	f.Fuzz(func(t *testing.T, seed uint64, moves []byte) {
		if len(moves) > 100 {
			return
		}
		if wrong := r(seed, moves); wrong != "" {
			t.Errorf("world %d: %s", seed, wrong)
		}
	})
}

// onThread makes a rig, whose namespaces belong to a thread, and returns a function that plays
// on it.
func onThread(f *testing.F) func(seed uint64, moves []byte) string {
	type job struct {
		seed  uint64
		moves []byte
		wrong chan string
	}
	jobs, ready := make(chan job), make(chan bool)
	go func() {
		defer close(ready)
		r := newRig(f)
		r.portClasses()
		r.TB = inTarget{f}
		ready <- true
		for j := range jobs {
			j.wrong <- r.fuzz(j.seed, j.moves)
		}
	}()
	if !<-ready {
		f.FailNow()
	}
	f.Cleanup(func() { close(jobs); <-ready })
	return func(seed uint64, moves []byte) string {
		j := job{seed, moves, make(chan string)}
		jobs <- j
		return <-j.wrong
	}
}

// fuzz draws each event from its place and its byte.
func (r *rig) fuzz(seed uint64, moves []byte) string {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		t := &tale{world: r.draw(rand.New(rand.NewPCG(seed, 0))), all: &tally{}}
		t.n.Witness = t
		for i, move := range moves {
			at := uint64(i)<<8 | uint64(move)
			t.step(t.next(rand.New(rand.NewPCG(seed, at+1)), t.story), rand.New(rand.NewPCG(seed, at+1<<32)))
			if t.wrong != "" || t.late {
				break
			}
		}
		if !t.late {
			return t.verdict()
		}
	}
	return "the machine is too slow"
}

// inTarget is a testing.F while its target runs, which may then not be used.
type inTarget struct{ testing.TB }

func (inTarget) Helper()          {}
func (inTarget) Fatal(all ...any) { panic(fmt.Sprint(all...)) }
