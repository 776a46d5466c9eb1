package cni

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Loopback is the plugin that brings up a pod's device lo, by its usual name. Runtimes before
// containerd 2.0 call it for each pod beside the network's own, and distributions of Kubernetes
// bring it along; where it is missing, ours takes its place.
const Loopback = "loopback"

// loopback does what a runtime asks the plugin loopback for.
func loopback(_ context.Context, command string, r request) (any, error) {
	if command != "ADD" && command != "CHECK" {
		return nil, nil // the device goes with the pod
	}
	if err := r.namespace(); err != nil {
		return nil, err
	}
	failed := func(what string, err error) error {
		return types.NewError(types.ErrInternal, fmt.Sprintf("%s in %s: %v", what, r.netns, err), "")
	}
	ns, err := netns.GetFromPath(r.netns)
	if err != nil {
		return nil, failed("open the network namespace", err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, failed("look at the devices", err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return nil, failed("find the device lo", err)
	}
	if command == "CHECK" {
		if lo.Attrs().Flags&1 == 0 { // IFF_UP
			return nil, types.NewError(codeDamaged, "the device lo is down", "restart the pod")
		}
		return nil, nil
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return nil, failed("bring up the device lo", err)
	}
	if r.PrevResult != nil {
		return r.PrevResult, nil
	}
	return (&types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: r.netns}},
	}).GetAsVersion(r.CNIVersion)
}
