package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/weft-mesh/weft/statefile"
)

// Default names and ports, the same for every process of a node.
var (
	DefaultDevices = [LaneCount]string{"weft0", "weft1"}
	DefaultPorts   = [LaneCount]uint16{51871, 51872}
)

const (
	// DefaultSocketDir is where wgctrl looks for userspace devices, and nowhere else.
	DefaultSocketDir = "/var/run/wireguard"
	// DefaultServeStateDir holds what `weft tunnel` restores when it starts.
	DefaultServeStateDir = "/var/lib/weft/tunnel"
)

// ServeConfig configures the `weft tunnel` process.
type ServeConfig struct {
	// Devices are the TUN devices' names.
	Devices [LaneCount]string
	// Ports are the UDP ports that the devices listen on unless restored or
	// configured otherwise.
	Ports [LaneCount]uint16
	// MTU of a new device, in bytes; one that exists keeps its own.
	MTU int
	// StateDir holds each device's configuration, keys included, 0600.
	StateDir string
	// SocketDir holds the configuration sockets.
	SocketDir string
	// IfNeeded lets the process wait, and serve nothing, where the kernel has WireGuard.
	IfNeeded bool
	Log      *slog.Logger `json:"-"`
}

// ServeDefaults is the configuration of an ordinary node.
func ServeDefaults() ServeConfig {
	return ServeConfig{
		Devices:   DefaultDevices,
		Ports:     DefaultPorts,
		MTU:       1420,
		StateDir:  DefaultServeStateDir,
		SocketDir: DefaultSocketDir,
		Log:       slog.Default(),
	}
}

// Validate reports every mistake at once.
func (c ServeConfig) Validate() error {
	var errs []error
	for i, name := range c.Devices {
		if err := validDevice(name); err != nil {
			errs = append(errs, fmt.Errorf("device of %s: %w", laneName(i), err))
		}
		if c.Ports[i] == 0 {
			errs = append(errs, fmt.Errorf("port of %s is 0: choose a fixed one such as %d, so that peers know where to send", laneName(i), DefaultPorts[i]))
		}
	}
	if c.Devices[0] == c.Devices[1] {
		errs = append(errs, fmt.Errorf("both tunnels use device %q: give each its own", c.Devices[0]))
	}
	if c.Ports[0] == c.Ports[1] && c.Ports[0] != 0 {
		errs = append(errs, fmt.Errorf("both tunnels listen on port %d: give each its own", c.Ports[0]))
	}
	if c.MTU < MinMTU {
		errs = append(errs, fmt.Errorf("MTU %d is below %d", c.MTU, MinMTU))
	}
	if c.StateDir == "" {
		errs = append(errs, errors.New("no state directory: without one, a restarted tunnel knows no peers"))
	}
	if c.SocketDir == "" {
		errs = append(errs, fmt.Errorf("no socket directory: wgctrl looks in %s", DefaultSocketDir))
	}
	return errors.Join(errs...)
}

func validDevice(name string) error {
	switch {
	case name == "" || len(name) > 15:
		return fmt.Errorf("%q: a device name has 1 to 15 characters", name)
	case name == "." || name == ".." || filepath.Base(name) != name:
		return fmt.Errorf("%q: a device name has no slash and is not . or ..", name)
	}
	return nil
}

// Serve is the `weft tunnel` process: userspace WireGuard on both lanes until ctx ends
// or a device fails. Devices are persistent: however Serve ends, the devices and
// their addresses, routes and programs stay, and packets sent into them are lost, not
// leaked. The next Serve restores configuration and handshakes by itself, with or
// without an agent. Remove removes the devices.
//
// It needs /dev/net/tun and CAP_NET_ADMIN.
func Serve(ctx context.Context, cfg ServeConfig) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("tunnel configuration: %w", err)
	}
	if cfg.IfNeeded {
		need, err := needed(cfg.Devices[0], netlink.LinkByName, tryWireGuard)
		if err != nil {
			return err
		}
		if !need {
			cfg.Log.Info("the kernel has WireGuard: nothing is served in user space")
			<-ctx.Done()
			return nil
		}
	}
	release, err := statefile.Lock(cfg.StateDir, "tunnel")
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll(cfg.SocketDir, 0o755); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range cfg.Devices {
		g.Go(func() error {
			if err := serveLane(ctx, cfg, i); err != nil {
				return fmt.Errorf("serve %s: %w", cfg.Devices[i], err)
			}
			return nil
		})
	}
	return g.Wait()
}

// serveLane runs one device until ctx ends or it fails.
func serveLane(ctx context.Context, cfg ServeConfig, lane int) error {
	name := cfg.Devices[lane]
	log := cfg.Log.With("device", name)
	link, err := openTUN(name, cfg.MTU, log)
	if err != nil {
		return err
	}
	dev := device.NewDevice(link, conn.NewDefaultBind(), deviceLogger(log))
	// Closes our handle of the TUN device and waits for its workers; the persistent
	// device stays.
	defer dev.Close()

	saved := savedConfig{path: filepath.Join(cfg.StateDir, name+".conf"), log: log}
	restored, err := saved.restore(dev)
	if err != nil {
		return err
	}
	if !restored {
		if err := dev.IpcSet(fmt.Sprintf("listen_port=%d\n", cfg.Ports[lane])); err != nil {
			return fmt.Errorf("listen on UDP port %d: %w", cfg.Ports[lane], err)
		}
	}
	turns, err := saved.calm(dev)
	if err != nil {
		return err
	}
	// Up binds the port and sends the first restored peers a keepalive, and with it a
	// handshake, at once.
	if err := dev.Up(); err != nil {
		return fmt.Errorf("listen on its UDP port; is another process using it? %w", err)
	}
	path := filepath.Join(cfg.SocketDir, name+".sock")
	socket, err := listenUAPI(path)
	if err != nil {
		return err
	}
	log.Info("tunnel device is up", "restored", restored)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveUAPI(ctx, socket, path, dev, &saved, log) })
	if restored {
		g.Go(func() error {
			if err := saved.wake(ctx, dev, turns); err != nil {
				return err
			}
			return saved.greet(ctx, dev)
		})
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-dev.Wait():
			return errors.New("the device closed by itself; was it deleted?")
		}
	})
	return g.Wait()
}

func laneName(lane int) string { return fmt.Sprintf("tunnel %d", lane) }
