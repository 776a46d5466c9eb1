package bpftest

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/weft-mesh/weft/bpf"
)

// Both datapaths have the same methods.
var _, _ interface {
	Maps() *bpf.Maps
	AttachPod(ifindex int) error
	AttachTunnel(ifindex, lane int) error
	AttachDevice(ifindex int) error
	Detach(ifindex int) error
	Attached() ([]bpf.Attachment, error)
	Events(context.Context, func(bpf.Event)) error
	Counters() ([]bpf.Counter, error)
	Lost() (uint64, error)
	Sweep(now uint64) (bpf.Swept, error)
	Close() error
	Remove() error
} = (*Datapath)(nil), (*bpf.Datapath)(nil)

func TestEveryTableIsThere(t *testing.T) {
	maps := reflect.ValueOf(New()).Elem()
	for i := range maps.NumField() {
		if maps.Field(i).IsNil() {
			t.Errorf("no table %s", maps.Type().Field(i).Name)
		}
	}
}

func TestFail(t *testing.T) {
	broken := errors.New("broken on purpose")
	table := NewTable[int, string]("words", 10)
	table.Fail(func(op string, k int) error {
		if op == "update" && k == 2 {
			return broken
		}
		return nil
	})
	if err := table.Update(1, "one"); err != nil {
		t.Error(err)
	}
	if err := table.Update(2, "two"); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if _, ok, _ := table.Lookup(2); ok {
		t.Error("the row was written all the same")
	}
}

func TestDatapath(t *testing.T) {
	d := NewDatapath()
	if err := errors.Join(d.AttachPod(5), d.AttachTunnel(3, 1), d.AttachPod(5), d.AttachDevice(9), d.Detach(9)); err != nil {
		t.Fatal(err)
	}
	want := []bpf.Attachment{{Role: bpf.RoleTunnel, Ifindex: 3, Lane: 1}, {Role: bpf.RolePod, Ifindex: 5}}
	if got, err := d.Attached(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("attached %v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.Emit(bpf.Event{Rule: 7})
	err := d.Events(ctx, func(e bpf.Event) {
		if e.Rule != 7 {
			t.Errorf("event %+v", e)
		}
		cancel()
	})
	if err != nil {
		t.Error(err)
	}
}
