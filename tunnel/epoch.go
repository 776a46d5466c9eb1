package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// LaneCount is the number of WireGuard devices of a node: while the key of one is
// replaced, the other carries the traffic.
const LaneCount = 2

const (
	// QuietBeforeRotate is how long the lane to be rekeyed must have received no
	// data, so that a peer that switches late still finds its session.
	QuietBeforeRotate = 2 * time.Second
	// AgeBeforeRotate is how old the current epoch must be. It is longer than a
	// change takes from one node's record to another node's device.
	AgeBeforeRotate = 5 * time.Second
)

// ErrNotYet is wrapped by MayRotate's error if waiting helps.
var ErrNotYet = errors.New("not yet")

// Lane is the lane that two nodes with these epochs use between them. Both compute
// the same lane from the same two numbers.
func Lane(mine, theirs uint64) int { return int(min(mine, theirs) % LaneCount) }

// Choose is the lane to send on now: the one that Lane returns as soon as it has a
// handshake that has settled, until then the one used so far. If used is -1, none was, and a
// lane with such a handshake beats one without.
func Choose(mine, theirs uint64, used int, handshaken [LaneCount]bool) int {
	wanted := Lane(mine, theirs)
	switch {
	case handshaken[wanted]:
		return wanted
	case used >= 0 && used < LaneCount:
		return used
	case handshaken[1-wanted]:
		return 1 - wanted
	}
	return wanted
}

// NextEpoch is the epoch to rotate to on the way from mine to wanted, or mine if
// there is nothing to do. A step must be odd to rekey the lane that is not in use;
// two steps reach any epoch.
func NextEpoch(mine, wanted uint64) uint64 {
	switch {
	case wanted <= mine:
		return mine
	case (wanted-mine)%2 == 1:
		return wanted
	}
	return wanted - 1
}

// MayRotate reports whether a node at epoch mine may rotate to epoch to: nil, or an
// error that says what prevents it. peers are the epochs of all peers that are alive,
// by name; age is how long the node has been at mine; quiet is how long lane to%2 has
// received no data.
func MayRotate(mine, to uint64, peers map[string]uint64, age, quiet time.Duration) error {
	if to <= mine || (to-mine)%2 != 1 {
		return fmt.Errorf("rotate from epoch %d to %d: the step must be odd and upwards, or it changes the key of the tunnel in use", mine, to)
	}
	lagging, name := 0, ""
	for peer, epoch := range peers {
		if epoch+1 >= to {
			continue
		}
		if lagging++; name == "" || peer < name {
			name = peer
		}
	}
	switch {
	case lagging > 0:
		return fmt.Errorf("rotate to epoch %d: %w: %d live peers have not reached epoch %d, among them %s at %d", to, ErrNotYet, lagging, to-1, name, peers[name])
	case age < AgeBeforeRotate:
		return fmt.Errorf("rotate to epoch %d: %w: epoch %d is %v old, want %v", to, ErrNotYet, mine, age.Round(time.Millisecond), AgeBeforeRotate)
	case quiet < QuietBeforeRotate:
		return fmt.Errorf("rotate to epoch %d: %w: tunnel %d received data %v ago, want %v of quiet", to, ErrNotYet, to%LaneCount, quiet.Round(time.Millisecond), QuietBeforeRotate)
	}
	return nil
}
