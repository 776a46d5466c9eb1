package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
)

// Owners of shares that are no pods. The others are devices.
const (
	SharesNode   = 0          // what the node opens: probes of its pods
	SharesCommon = 0xffffffff // what all hold beyond their shares
)

const (
	// A quarter of the flow table is divided among the pods, a thirty-second is
	// the node's own; the rest is for whoever needs it.
	surePart, nodePart = 4, 32
	// As many pods as there are, rounded up to a power of two so that a share
	// changes seldom, and at least this many.
	fewestShares = 16
	// eventRecord is what an event takes in the buffer, sureTellers how many pods
	// may fill half of it in a second: 73 events each with the default.
	eventRecord, sureTellers = 112, 64
)

// BudgetFor divides a flow table among the pods of a node.
func BudgetFor(flows uint32, pods int) Budget {
	shares := uint32(fewestShares)
	if pods > fewestShares {
		shares = 1 << bits.Len32(uint32(pods-1))
	}
	b := Budget{Each: flows / surePart / shares, Node: flows / nodePart}
	b.Common = flows - b.Each*shares - b.Node
	return b
}

// sure is what an owner need not share.
func (b Budget) sure(owner uint32) int64 {
	if owner == SharesNode {
		return int64(b.Node)
	}
	return int64(b.Each)
}

// Holding is what one owner holds of table flows, and what it cost it.
type Holding struct {
	Owner uint32 // device of a pod, or SharesNode
	Sure  int64  // rows that it has a right to
	Share
}

// Holdings lists all owners, those with the most rows first.
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

// drift is how much an account is wrong at least, by a count of the rows made
// between the readings before and after; 0: the count can be explained. The rows
// opened meanwhile may or may not have been counted, likewise those deleted.
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

// lasting is the part of an error that two counts in a row agree on. A single one
// may have fallen between the two writes of one packet.
func lasting(was, is int64) int64 {
	switch {
	case was > 0 && is > 0:
		return min(was, is)
	case was < 0 && is < 0:
		return max(was, is)
	}
	return 0
}

// beyond is what all hold beyond their shares.
func beyond(b Budget, accounts map[uint32]Share) (rows int64) {
	for owner, s := range accounts {
		if owner != SharesCommon {
			rows += max(0, s.Used-b.sure(owner))
		}
	}
	return rows
}

// settleLocked corrects accounts by what a sweep counted, forgets those of pods
// that are gone and hold nothing, and divides the table anew when there are more
// or fewer pods.
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
	// The common account follows from the others. They may have changed between
	// the readings: what two sweeps agree on is an error.
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
	s, _, _ := d.rows.Shares.Lookup(SharesCommon) // absent or not read: no change seen
	return s
}

// devices are the pods' host sides.
func (d *Datapath) devices() (map[uint32]bool, error) {
	all := map[uint32]bool{}
	rows, failed := d.rows.Endpoints.All()
	for _, ep := range rows {
		all[ep.Ifindex] = true
	}
	return all, failed()
}

// divide writes the budget if it has changed. The rows that are held count as
// beyond a share or within it by the new one at once.
func (d *Datapath) divide(pods int) error {
	want := BudgetFor(uint32(d.rows.Flows.MaxEntries()), pods)
	was, accounts, err := readShares(d.rows)
	if err != nil || was == want {
		return err
	}
	if err := d.rows.Budgets.Update(0, want); err != nil {
		return err
	}
	return d.add(SharesCommon, beyond(want, accounts)-accounts[SharesCommon].Used)
}

// add changes an account while packets do, too.
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
