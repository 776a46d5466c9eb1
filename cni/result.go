package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-mesh/weft/api"
)

// inPod is the place of the pod's device among the interfaces of a result, after the other
// end of its pair.
const inPod = 1

// result tells the runtime what the agent has made, in the version that it speaks.
func (r request) result(e *api.EndpointResult) (types.Result, error) {
	at := inPod
	out := &current.Result{
		CNIVersion: current.ImplementedSpecVersion, DNS: r.DNS,
		Interfaces: []*current.Interface{
			{Name: e.Device, Mac: e.DeviceMAC, Mtu: e.MTU},
			{Name: e.Interface, Mac: e.MAC, Mtu: e.MTU, Sandbox: r.netns},
		},
	}
	if r.CNIVersion != current.ImplementedSpecVersion {
		for _, i := range out.Interfaces {
			i.Mtu = 0 // new in 1.1
		}
	}
	for _, p := range e.Addresses {
		ip := &current.IPConfig{Interface: &at, Address: netOf(p)}
		for _, route := range e.Routes {
			if route.Destination.Bits() == 0 && route.Destination.Addr().BitLen() == p.Addr().BitLen() && route.Gateway.IsValid() {
				ip.Gateway = route.Gateway.AsSlice()
			}
		}
		out.IPs = append(out.IPs, ip)
	}
	for _, route := range e.Routes {
		to := &types.Route{Dst: netOf(route.Destination)}
		if route.Gateway.IsValid() {
			to.GW = route.Gateway.AsSlice()
		}
		out.Routes = append(out.Routes, to)
	}
	spoken, err := out.GetAsVersion(r.CNIVersion)
	if err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, err.Error(), "use another cniVersion")
	}
	return spoken, nil
}

func netOf(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// compare fails unless a pod's network is the one that ADD returned. Plugins behind this one
// may have added to that.
func (r request) compare(got *api.EndpointResult) error {
	before, err := r.previous()
	if err != nil {
		return err
	}
	damaged := func(format string, args ...any) error {
		return types.NewError(codeDamaged, fmt.Sprintf(format, args...), "start the pod again")
	}
	at := -1
	for i, device := range before.Interfaces {
		if device.Name == got.Interface && device.Sandbox == r.netns {
			at = i
			if device.Mac != "" && device.Mac != got.MAC {
				return damaged("the pod's %s has the MAC address %s, and was given %s", got.Interface, got.MAC, device.Mac)
			}
		}
	}
	if at < 0 {
		return damaged("prevResult has no device %s in %s", got.Interface, r.netns)
	}
	given := map[string]bool{}
	for _, ip := range before.IPs {
		if ip.Interface != nil && *ip.Interface == at {
			given[ip.Address.IP.String()] = true
		}
	}
	for _, p := range got.Addresses {
		if !given[p.Addr().String()] {
			return damaged("the pod has the address %v, which it was not given", p.Addr())
		}
		delete(given, p.Addr().String())
	}
	for ip := range given {
		return damaged("the pod no longer has the address %s", ip)
	}
	return nil
}

// previous is the result of ADD.
func (r request) previous() (*current.Result, error) {
	if len(r.PrevResult) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs the result of ADD", "give it as prevResult")
	}
	undecodable := func(err error) error {
		return types.NewError(types.ErrDecodingFailure, "prevResult cannot be read: "+err.Error(), "start the pod again")
	}
	// Results of before 1.0 may leave out their version, which is the configuration's.
	if v, _ := r.PrevResult["cniVersion"].(string); v == "" {
		r.PrevResult["cniVersion"] = r.CNIVersion
	}
	text, err := json.Marshal(r.PrevResult)
	if err != nil {
		return nil, undecodable(err)
	}
	before, err := version.NewResult(r.CNIVersion, text)
	if err != nil {
		return nil, undecodable(err)
	}
	out, err := current.NewResultFromResult(before)
	if err != nil {
		return nil, undecodable(err)
	}
	return out, nil
}
