package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/lab/fabric"
)

// controlFlows are the flows between two clusters' API servers.
var controlFlows = []string{"tcp/2379", "tcp/7443", "7947"}

// cut and heal take a node, a cluster, or two clusters or nodes with or without some
// flows.
func (v *Live) cut(_ context.Context, args []string) error  { return v.link(args, true) }
func (v *Live) heal(_ context.Context, args []string) error { return v.link(args, false) }

func (v *Live) link(args []string, cut bool) error {
	switch {
	case len(args) == 0:
		return usageError{}
	case !cut && len(args) == 1 && args[0] == "all":
		return v.healAll()
	case len(args) > 1 && strings.Contains(args[1], "/"):
		return v.oneWay(args, cut)
	case strings.Contains(args[0], "/") && len(args) > 1:
		return usageError{}
	case strings.Contains(args[0], "/"):
		n, err := v.Lab.Node(args[0])
		if err != nil {
			return err
		}
		v.fault()
		if cut {
			return n.Cut()
		}
		return n.Heal()
	}
	if _, err := v.Lab.Cluster(args[0]); err != nil {
		return err
	}
	weather := v.Lab.Network.Weather().Clone()
	if len(args) == 1 {
		weather.Off[args[0]] = cut
	} else if err := v.pair(weather, args, cut); err != nil {
		return err
	}
	v.fault()
	v.Lab.Network.SetWeather(weather)
	return nil
}

// pair changes both directions between two clusters.
func (v *Live) pair(weather *fabric.Weather, args []string, cut bool) error {
	if _, err := v.Lab.Cluster(args[1]); err != nil {
		return err
	}
	flows, err := flowsOf(args[2:])
	if err != nil {
		return err
	}
	both(weather, args[0], args[1], func(q *fabric.Quality) {
		if len(flows) == 0 {
			q.Cut = cut
			return
		}
		q.Flows = slices.DeleteFunc(slices.Clone(q.Flows), func(f fabric.Flow) bool { return slices.Contains(flows, f) })
		if cut {
			q.Flows = append(q.Flows, flows...)
		}
	})
	return nil
}

func flowsOf(words []string) (flows []fabric.Flow, err error) {
	if slices.Equal(words, []string{"control"}) {
		words = controlFlows
	}
	for _, word := range words {
		f, err := fabric.ParseFlow(word)
		if err != nil {
			return nil, err
		}
		flows = append(flows, f)
	}
	return flows, nil
}

// oneWay starts or stops dropping what one node sends to another.
func (v *Live) oneWay(args []string, cut bool) error {
	from, err := v.Lab.Node(args[0])
	if err != nil {
		return err
	}
	if from == v.Lab.Operator {
		return misuse("the operator's machine has no link that can be cut: name a node")
	}
	to, err := v.Lab.Node(args[1])
	if err != nil {
		return err
	}
	flows, err := flowsOf(args[2:])
	if err != nil {
		return err
	}
	v.fault()
	var failed []error
	for _, addr := range to.Addrs {
		failed = append(failed, from.Block(addr, flows, cut))
	}
	return errors.Join(failed...)
}

// route has the network send packets for a prefix to a machine.
func (v *Live) route(_ context.Context, args []string) error {
	if len(args) != 2 {
		return usageError{}
	}
	prefix, err := netip.ParsePrefix(args[0])
	if err != nil || prefix != prefix.Masked() {
		return misuse("%q is not a prefix", args[0])
	}
	to, err := v.Lab.Node(args[1])
	if err != nil {
		return err
	}
	cluster, _, _ := strings.Cut(args[1], "/")
	for _, addr := range to.Addrs {
		if addr.Is4() == prefix.Addr().Is4() {
			return v.Lab.Network.Route(prefix, cluster, addr)
		}
	}
	return misuse("%s has no address of the family of %s", args[1], prefix)
}

func both(weather *fabric.Weather, a, b string, change func(*fabric.Quality)) {
	for _, p := range []fabric.Pair{{From: a, To: b}, {From: b, To: a}} {
		q, ok := weather.Pairs[p]
		if !ok {
			q = weather.Default
		}
		change(&q)
		weather.Pairs[p] = q
	}
}

// healAll undoes every cut. Delays, limits and losses stay.
func (v *Live) healAll() error {
	v.fault()
	weather := v.Lab.Network.Weather().Clone()
	clear(weather.Off)
	for p, q := range weather.Pairs {
		q.Cut, q.Flows = false, nil
		weather.Pairs[p] = q
	}
	v.Lab.Network.SetWeather(weather)
	for _, n := range v.Lab.Nodes() {
		if err := n.Unblock(); err != nil {
			return err
		}
		if n.Powered() {
			if err := n.Heal(); err != nil {
				return err
			}
		}
	}
	return nil
}

// quality changes the network everywhere, or between two clusters.
func (v *Live) quality(args []string, change func(q *fabric.Quality, value string) error) error {
	weather := v.Lab.Network.Weather().Clone()
	var failed error
	switch len(args) {
	case 1:
		failed = change(&weather.Default, args[0])
		for p, q := range weather.Pairs {
			_ = change(&q, args[0])
			weather.Pairs[p] = q
		}
	case 3:
		for _, name := range args[:2] {
			if _, err := v.Lab.Cluster(name); err != nil {
				return err
			}
		}
		both(weather, args[0], args[1], func(q *fabric.Quality) { failed = change(q, args[2]) })
	default:
		return usageError{}
	}
	if failed == nil {
		v.Lab.Network.SetWeather(weather)
	}
	return failed
}

func (v *Live) delay(_ context.Context, args []string) error {
	return v.quality(args, func(q *fabric.Quality, value string) (err error) {
		q.Delay, err = time.ParseDuration(value)
		if err == nil && q.Delay < 0 {
			return fmt.Errorf("a delay is 0 or longer, not %s", value)
		}
		return err
	})
}

func (v *Live) limit(_ context.Context, args []string) error {
	return v.quality(args, func(q *fabric.Quality, value string) (err error) {
		q.Limit, err = strconv.Atoi(value)
		if err == nil && q.Limit < 0 {
			return fmt.Errorf("a limit is a number of bytes, or 0 for none, not %s", value)
		}
		return err
	})
}

func (v *Live) loss(_ context.Context, args []string) error {
	return v.quality(args, func(q *fabric.Quality, value string) (err error) {
		q.Loss, err = strconv.ParseFloat(value, 64)
		if err == nil && !(q.Loss >= 0 && q.Loss <= 1) { // NaN is neither
			return fmt.Errorf("loss is a share from 0 to 1, not %s", value)
		}
		return err
	})
}
