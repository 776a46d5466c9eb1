package peers

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"
)

// Generated nodes answer: WireGuard's handshakes, and echo requests inside of tunnels. If
// they did not, an agent's machine would have as many dead nodes as the mesh has nodes, and
// spend its time on handshakes that are repeated every 5 s. They do not begin anything.

// privateKey is what a node uses in one epoch of its keys; it follows from its name.
func privateKey(cluster, node string, epoch uint64) *ecdh.PrivateKey {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", cluster, node, epoch))
	key, err := ecdh.X25519().NewPrivateKey(sum[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	return key
}

// LanePorts are the UDP ports of every node's two tunnels. The newest key is in one of them.
var LanePorts = [2]uint16{51820, 51821}

// NodeRange holds the addresses at which all nodes' tunnels end.
var NodeRange = netip.PrefixFrom(nodeBase, 10)

// Responders returns the tunnels of all nodes that the world has or will have.
func (w *World) Responders() *Responders {
	return NewResponders(func(at netip.AddrPort) *ecdh.PrivateKey {
		if !NodeRange.Contains(at.Addr()) {
			return nil
		}
		base, a := nodeBase.As4(), at.Addr().As4()
		n := int(binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:]))
		i, j := n/mostNodes, n%mostNodes-1
		if i >= len(w.Clusters) || j < 0 || j >= w.Shape.nodeRoom() || at.Port() != LanePorts[firstEpoch%2] {
			return nil
		}
		return privateKey(w.Clusters[i].Name(), nodeName(j), firstEpoch)
	})
}

// firstEpoch is that of all nodes' keys.
const firstEpoch = 1

// Responders are the tunnels of all nodes of a world. Several goroutines may use them.
type Responders struct {
	keys func(at netip.AddrPort) *ecdh.PrivateKey

	mu       sync.Mutex // guards what follows
	sessions map[uint32]*session
	latest   map[netip.AddrPort][2]uint32 // the indexes of the last sessions of a tunnel, newest first
	last     uint32
}

// session is one pair of keys of a tunnel.
type session struct {
	theirs        uint32 // index
	receive, send [chacha20poly1305.KeySize]byte
	sent          uint64 // messages; guarded by Responders.mu
}

// NewResponders answers for tunnels whose private keys are given by where they listen; nil:
// nobody does.
func NewResponders(keys func(at netip.AddrPort) *ecdh.PrivateKey) *Responders {
	return &Responders{keys: keys, sessions: map[uint32]*session{}, latest: map[netip.AddrPort][2]uint32{}}
}

var errUnanswered = errors.New("not answered")

// Answer returns the answer to a datagram that was sent to a tunnel; nil: there is none.
func (r *Responders) Answer(at netip.AddrPort, datagram []byte) ([]byte, error) {
	if len(datagram) < 4 {
		return nil, errUnanswered
	}
	switch kind := binary.LittleEndian.Uint32(datagram); {
	case kind == device.MessageInitiationType && len(datagram) == device.MessageInitiationSize:
		return r.shake(at, datagram)
	case kind == device.MessageTransportType && len(datagram) >= device.MessageTransportSize:
		return r.echo(datagram)
	}
	return nil, errUnanswered
}

// noise is the state of a handshake.
type noise struct {
	hash, chain, key [blake2s.Size]byte
}

func (n *noise) mix(data []byte) { n.hash = blake2s.Sum256(append(n.hash[:], data...)) }

// agree mixes the secret that a private and a public key share into the chain.
func (n *noise) agree(private *ecdh.PrivateKey, public []byte) error {
	key, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return err
	}
	secret, err := private.ECDH(key)
	if err == nil {
		device.KDF2(&n.chain, &n.key, n.chain[:], secret)
	}
	return err
}

// open decrypts a field of a handshake.
func (n *noise) open(field []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(n.key[:])
	if err != nil {
		return nil, err
	}
	text, err := aead.Open(nil, make([]byte, chacha20poly1305.NonceSize), field, n.hash[:])
	n.mix(field)
	return text, err
}

// Fields of handshakes; see WireGuard's paper, section 5.4.
const (
	fieldSender    = 4
	fieldEphemeral = 8
	fieldStatic    = fieldEphemeral + 32
	fieldTime      = fieldStatic + 32 + chacha20poly1305.Overhead
	fieldReceiver  = 8 // of responses
	fieldAnswering = 12
	fieldEmpty     = fieldAnswering + 32
	fieldMAC       = fieldEmpty + chacha20poly1305.Overhead
)

// shake answers the initiation of a handshake.
func (r *Responders) shake(at netip.AddrPort, m []byte) ([]byte, error) {
	private := r.keys(at)
	if private == nil {
		return nil, errUnanswered
	}
	n := noise{hash: device.InitialHash, chain: device.InitialChainKey}
	ephemeral := m[fieldEphemeral:fieldStatic]
	n.mix(private.PublicKey().Bytes())
	n.mix(ephemeral)
	device.KDF1(&n.chain, n.chain[:], ephemeral)
	if err := n.agree(private, ephemeral); err != nil {
		return nil, err
	}
	static, err := n.open(m[fieldStatic:fieldTime])
	if err != nil {
		return nil, err
	}
	if err := n.agree(private, static); err != nil {
		return nil, err
	}
	if _, err := n.open(m[fieldTime : device.MessageInitiationSize-2*blake2s.Size128]); err != nil {
		return nil, err
	}

	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	answer := make([]byte, device.MessageResponseSize)
	binary.LittleEndian.PutUint32(answer, device.MessageResponseType)
	copy(answer[fieldReceiver:], m[fieldSender:fieldSender+4])
	public := own.PublicKey().Bytes()
	copy(answer[fieldAnswering:], public)
	n.mix(public)
	device.KDF1(&n.chain, n.chain[:], public)
	for _, theirs := range [][]byte{ephemeral, static} {
		if err := n.agree(own, theirs); err != nil {
			return nil, err
		}
	}
	var tau [blake2s.Size]byte
	device.KDF3(&n.chain, &tau, &n.key, n.chain[:], make([]byte, device.NoisePresharedKeySize))
	n.mix(tau[:])
	aead, err := chacha20poly1305.New(n.key[:])
	if err != nil {
		return nil, err
	}
	aead.Seal(answer[fieldEmpty:fieldEmpty], make([]byte, chacha20poly1305.NonceSize), nil, n.hash[:])

	s := &session{theirs: binary.LittleEndian.Uint32(m[fieldSender:])}
	device.KDF2(&s.receive, &s.send, n.chain[:], nil)
	binary.LittleEndian.PutUint32(answer[fieldSender:], r.begin(at, s))

	label := blake2s.Sum256(append([]byte(device.WGLabelMAC1), static...))
	mac, err := blake2s.New128(label[:])
	if err != nil {
		return nil, err
	}
	mac.Write(answer[:fieldMAC])
	mac.Sum(answer[fieldMAC:fieldMAC])
	return answer, nil
}

// begin keeps a session of a tunnel, and the one before for what is on its way.
func (r *Responders) begin(at netip.AddrPort, s *session) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	before := r.latest[at]
	delete(r.sessions, before[1])
	r.latest[at], r.sessions[r.last] = [2]uint32{r.last, before[0]}, s
	return r.last
}

// echo answers an echo request inside of a tunnel.
func (r *Responders) echo(m []byte) ([]byte, error) {
	r.mu.Lock()
	s := r.sessions[binary.LittleEndian.Uint32(m[device.MessageTransportOffsetReceiver:])]
	r.mu.Unlock()
	if s == nil {
		return nil, errUnanswered
	}
	aead, err := chacha20poly1305.New(s.receive[:])
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, chacha20poly1305.NonceSize)
	copy(nonce[4:], m[device.MessageTransportOffsetCounter:device.MessageTransportOffsetContent])
	packet, err := aead.Open(nil, nonce, m[device.MessageTransportOffsetContent:], nil)
	if err != nil {
		return nil, err
	}
	if !turn(packet) {
		return nil, errUnanswered
	}
	if aead, err = chacha20poly1305.New(s.send[:]); err != nil {
		return nil, err
	}
	r.mu.Lock()
	counter := s.sent
	s.sent++
	r.mu.Unlock()
	answer := make([]byte, device.MessageTransportOffsetContent, device.MessageTransportOffsetContent+len(packet)+aead.Overhead())
	binary.LittleEndian.PutUint32(answer, device.MessageTransportType)
	binary.LittleEndian.PutUint32(answer[device.MessageTransportOffsetReceiver:], s.theirs)
	binary.LittleEndian.PutUint64(answer[device.MessageTransportOffsetCounter:], counter)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return aead.Seal(answer, nonce, packet, nil), nil
}

// turn makes an IPv4 echo request the reply; false if it is none.
func turn(packet []byte) bool {
	const (
		header, icmp          = 20, 1
		echoReply, echoAsking = 0, 8
	)
	if len(packet) < header+8 || packet[0] != 4<<4|header/4 || packet[9] != icmp || packet[header] != echoAsking {
		return false
	}
	source, destination := [4]byte(packet[12:16]), [4]byte(packet[16:20])
	copy(packet[12:], destination[:])
	copy(packet[16:], source[:])
	packet[header] = echoReply
	// One's complement: what the type loses, the sum gains.
	sum := uint32(binary.BigEndian.Uint16(packet[header+2:])) + echoAsking<<8
	binary.BigEndian.PutUint16(packet[header+2:], uint16(sum+sum>>16))
	return true
}

// Serve answers on a socket that all nodes' addresses lead to, until ctx ends.
func (r *Responders) Serve(ctx context.Context, socket *Socket) error {
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	buffer := make([]byte, 1<<16)
	for {
		n, from, at, err := socket.read(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer for generated nodes: %w", err)
		}
		answer, err := r.Answer(at, buffer[:n])
		if err != nil {
			continue // as a node that is not there
		}
		// A datagram that is not sent is one that was lost.
		_ = socket.write(answer, at, from)
	}
}
