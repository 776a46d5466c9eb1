package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// EndConnections ends TCP sockets in a network namespace, as `ss --kill` does there, and says how
// many: at its next call the process gets ECONNABORTED. Each is asked for by its flow's key, which
// is how the pod knows the connection, and is left alone if still says no: that is called once
// the socket is known, so that it is not another's that has the connection's ports by now.
// Connections that no socket has are left out. It needs CONFIG_INET_DIAG_DESTROY.
func EndConnections(ns netns.NsHandle, all []FlowKey, still func(FlowKey) (bool, error)) (ended int, err error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, fmt.Errorf("enter namespace: %w", err)
	}
	defer s.Close()
	var errs []error
	for _, key := range all {
		ok, err := endConnection(&nl.SocketHandle{Socket: s}, key, still)
		if err != nil {
			errs = append(errs, fmt.Errorf("end the connection with %v:%d: %w", key.Remote, key.Rport.Number(), err))
		}
		if ok {
			ended++
		}
	}
	return ended, errors.Join(errs...)
}

// noCookie asks for any socket.
const noCookie = ^uint64(0)

// stateSynSent is TCP_SYN_SENT of the kernel.
const stateSynSent = 2

// endConnection ends the socket that has a connection. If it is closed, the kernel finds one that
// listens at its port instead, so the socket is identified first.
func endConnection(s *nl.SocketHandle, key FlowKey, still func(FlowKey) (bool, error)) (ended bool, err error) {
	sock := stranded{
		Family: unix.AF_INET6, Proto: unix.IPPROTO_TCP, Local: key.Local, Remote: key.Remote, Lport: key.Lport, Rport: key.Rport, Cookie: noCookie,
	}
	if key.Remote.Netip().Is4() {
		sock.Family = unix.AF_INET
	}
	ask := func(kind, flags int) ([][]byte, error) {
		req := nl.NewNetlinkRequest(kind, flags)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_SOCK_DIAG: s}
		req.AddRawData(sock.request())
		return req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	}
	// A struct inet_diag_msg: its state is at 1, its ports are at 4, its cookie at 44. The first
	// packet of one that connects may not have told its flow yet.
	found, err := ask(unix.SOCK_DIAG_BY_FAMILY, 0)
	if err != nil || len(found) != 1 || len(found[0]) < 52 || found[0][1] == stateSynSent || !bytes.Equal(found[0][4:8], append(key.Lport[:], key.Rport[:]...)) {
		return false, unlessClosed(err)
	}
	if ok, err := still(key); err != nil || !ok {
		return false, err
	}
	sock.Cookie = uint64(binary.NativeEndian.Uint32(found[0][44:])) | uint64(binary.NativeEndian.Uint32(found[0][48:]))<<32
	_, err = ask(unix.SOCK_DESTROY, unix.NLM_F_ACK)
	return err == nil, unlessClosed(err)
}

// unlessClosed is nil if an error says that there is no such socket, or no longer.
func unlessClosed(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return nil
	}
	return err
}
