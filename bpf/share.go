package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
)

// Owners of shares that are not pods. The others are device numbers.
const (
	SharesNode = 0 // flows that the node opens, such as probes of its pods
	// SharesOutside are flows that clients outside of the mesh open to pods of other nodes,
	// through node ports. They have as large a share as a pod.
	SharesOutside = 0xfffffffe
	SharesCommon  = 0xffffffff // what all owners hold beyond their shares
)

const (
	// A quarter of the flow table is divided among the pods, a thirty-second is
	// the node's; the rest is for whoever needs it.
	surePart, nodePart = 4, 32
	// The number of shares is that of the pods, rounded up to a power of two so
	// that it seldom changes, and at least this.
	fewestShares = 16
	// eventRecord is an event's size in the buffer, in bytes. Half of the buffer is
	// divided among sureTellers pods for a second: 73 events each with the default.
	eventRecord, sureTellers = 112, 64
)

// BudgetFor divides a flow table of so many rows among the pods of a node.
func BudgetFor(flows uint32, pods int) Budget {
	shares := uint32(fewestShares)
	if pods > fewestShares {
		shares = 1 << bits.Len32(uint32(pods-1))
	}
	b := Budget{Each: flows / surePart / shares, Node: flows / nodePart}
	b.Common = flows - b.Each*shares - b.Node
	return b
}

// sure is the number of rows guaranteed to an owner.
func (b Budget) sure(owner uint32) int64 {
	if owner == SharesNode {
		return int64(b.Node)
	}
	return int64(b.Each)
}

// Holding is what one owner holds of the flow table.
type Holding struct {
	Owner uint32 // device of a pod, or SharesNode
	Sure  int64  // flows guaranteed to it
	Share
}

// Holdings lists all owners, the one with the most rows first.
func (d *Datapath) Holdings() ([]Holding, error) {
	budget, accounts, err := readShares(d.rows)
	if err != nil {
		return nil, err
	}
	delete(accounts, SharesCommon)
	all := make([]Holding, 0, len(accounts))
	for owner, s := range accounts {
		all = append(all, Holding{Owner: owner, Sure: budget.sure(owner), Share: s})
	}
	slices.SortFunc(all, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(b.Used, a.Used), cmp.Compare(a.Owner, b.Owner))
	})
	return all, nil
}

func readShares(m *Maps) (Budget, map[uint32]Share, error) {
	budget, _, err := m.Budgets.Lookup(0)
	if err != nil {
		return budget, nil, fmt.Errorf("read budget: %w", err)
	}
	accounts := map[uint32]Share{}
	rows, failed := m.Shares.All()
	for owner, s := range rows {
		accounts[owner] = s
	}
	if err := failed(); err != nil {
		return budget, nil, fmt.Errorf("read shares: %w", err)
	}
	return budget, accounts, nil
}

func (d *Datapath) accounts() (map[uint32]Share, error) {
	_, accounts, err := readShares(d.rows)
	return accounts, err
}

// drift is by how many rows an account is wrong at least, given the rows counted
// between the readings before and after; 0 if they can be right. Rows opened or
// deleted in between may or may not have been counted.
func drift(before, after Share, counted int64) int64 {
	opened := max(int64(after.Opened-before.Opened), 0)
	closed := max(opened-(after.Used-before.Used), 0)
	switch {
	case counted < before.Used-closed:
		return counted - (before.Used - closed)
	case counted > before.Used+opened:
		return counted - (before.Used + opened)
	}
	return 0
}

// lasting is the part of the drift that two sweeps in a row agree on. A single sweep
// may have seen a packet between its two writes.
func lasting(was, is int64) int64 {
	switch {
	case was > 0 && is > 0:
		return min(was, is)
	case was < 0 && is < 0:
		return max(was, is)
	}
	return 0
}

// beyond is the number of rows that all owners hold beyond their shares.
func beyond(b Budget, accounts map[uint32]Share) (rows int64) {
	for owner, s := range accounts {
		if owner != SharesCommon {
			rows += max(0, s.Used-b.sure(owner))
		}
	}
	return rows
}

// settleLocked corrects accounts by what a sweep counted, deletes those of pods that
// are gone and hold nothing, and divides the table again if the number of pods
// changed.
func (d *Datapath) settleLocked(before, after map[uint32]Share, held map[uint32]int64) error {
	budget, now, err := readShares(d.rows)
	if err != nil {
		return err
	}
	pods, err := d.devices()
	if err != nil {
		return err
	}
	doubts := map[uint32]int64{}
	owners := maps.Clone(held)
	for owner := range after {
		owners[owner] = held[owner]
	}
	delete(owners, SharesCommon)
	for owner, rows := range owners {
		doubts[owner] = drift(before[owner], after[owner], rows)
		if add := lasting(d.doubts[owner], doubts[owner]); add != 0 {
			d.log.Debug("corrected an account of table flows", "device", owner, "rows", add)
			if err := d.add(owner, add); err != nil {
				return err
			}
			doubts[owner] -= add
		}
		if s, ok := now[owner]; owner != SharesNode && !pods[owner] && rows == 0 && ok && s.Opened == before[owner].Opened {
			if err := d.rows.Shares.Delete(owner); err != nil {
				return err
			}
		}
	}
	// The common account follows from the others, which may have changed between
	// the readings: only what two sweeps agree on is drift.
	common := now[SharesCommon]
	doubts[SharesCommon] = drift(common, d.common(), beyond(budget, now))
	if add := lasting(d.doubts[SharesCommon], doubts[SharesCommon]); add != 0 {
		if err := d.add(SharesCommon, add); err != nil {
			return err
		}
		doubts[SharesCommon] -= add
	}
	d.doubts = doubts
	return d.divide(len(pods))
}

func (d *Datapath) common() Share {
	s, _, _ := d.rows.Shares.Lookup(SharesCommon) // absent or unreadable: counts as unchanged
	return s
}

// devices are the host sides of the pods' veths.
func (d *Datapath) devices() (map[uint32]bool, error) {
	all := map[uint32]bool{}
	rows, failed := d.rows.Endpoints.All()
	for _, ep := range rows {
		all[ep.Ifindex] = true
	}
	return all, failed()
}

// divide writes the budget if it has changed, and adjusts the common account to it at
// once.
func (d *Datapath) divide(pods int) error {
	want := BudgetFor(uint32(d.rows.MaxFlows()), pods)
	was, accounts, err := readShares(d.rows)
	if err != nil || was == want {
		return err
	}
	if err := d.rows.Budgets.Update(0, want); err != nil {
		return err
	}
	return d.add(SharesCommon, beyond(want, accounts)-accounts[SharesCommon].Used)
}

// add changes an account in the kernel, because packets change it at the same time.
func (d *Datapath) add(owner uint32, rows int64) error {
	asked := struct { // struct settlement
		Owner, Pad uint32
		Add        int64
	}{Owner: owner, Add: rows}
	if _, err := d.settle.Run(&ebpf.RunOptions{Context: asked}); err != nil {
		return fmt.Errorf("run program settle: %w", err)
	}
	return nil
}
