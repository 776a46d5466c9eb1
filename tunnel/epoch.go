package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// LaneCount is the number of WireGuard devices of a node. Two are enough to
// replace a key while the other lane carries the traffic.
const LaneCount = 2

const (
	// QuietBeforeRotate is how long the lane to be rekeyed must have received
	// nothing. A peer that switches late still finds its session.
	QuietBeforeRotate = 2 * time.Second
	// AgeBeforeRotate is how old the present epoch must be. It is longer than
	// a change takes from one node's record to another node's device.
	AgeBeforeRotate = 5 * time.Second
)

// ErrNotYet is wrapped by MayRotate while waiting is all there is to do.
var ErrNotYet = errors.New("not yet")

// Lane names the lane that two nodes with these epochs use between them. Both
// compute the same from the same two numbers.
func Lane(mine, theirs uint64) int { return int(min(mine, theirs) % LaneCount) }

// Choose names the lane to send on now: the one that Lane names as soon as a
// handshake on it exists, until then the one used so far. A used of -1 means
// none so far, and then a lane with a handshake beats one without.
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

// NextEpoch names the epoch to rotate to on the way from mine to wanted, or
// mine when there is nothing to do. A step is odd, because only then it
// rekeys the lane that is not in use; two steps reach any epoch.
func NextEpoch(mine, wanted uint64) uint64 {
	switch {
	case wanted <= mine:
		return mine
	case (wanted-mine)%2 == 1:
		return wanted
	}
	return wanted - 1
}

// MayRotate says whether a node at epoch mine may take the step to epoch to: nil,
// or an error that names what is in the way. peers are the epochs of all peers
// that are alive, by name; age is how long the node has been at mine; quiet is
// how long lane to%2 has received no data.
func MayRotate(mine, to uint64, peers map[string]uint64, age, quiet time.Duration) error {
	if to <= mine || (to-mine)%2 != 1 {
		return fmt.Errorf("rotate from epoch %d to %d: the step must be odd and upwards, or it rekeys the lane in use", mine, to)
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
		return fmt.Errorf("rotate to epoch %d: %w: %d live peers are before epoch %d, among them %s at %d", to, ErrNotYet, lagging, to-1, name, peers[name])
	case age < AgeBeforeRotate:
		return fmt.Errorf("rotate to epoch %d: %w: epoch %d is %v old, want %v", to, ErrNotYet, mine, age.Round(time.Millisecond), AgeBeforeRotate)
	case quiet < QuietBeforeRotate:
		return fmt.Errorf("rotate to epoch %d: %w: lane %d received data %v ago, want %v of quiet", to, ErrNotYet, to%LaneCount, quiet.Round(time.Millisecond), QuietBeforeRotate)
	}
	return nil
}
