// Command image builds Weft's container image without Docker: one archive in the format of the
// Open Container Initiative, with an image for each platform, from an empty base. It holds the
// program alone, without the lab, and beside each image stands its bill of materials. The same
// commit gives the same bytes.
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const usage = `Build Weft's container image as an OCI archive. It needs Go, and no Docker.

    image -output weft.tar
    skopeo copy --all oci-archive:weft.tar docker://registry.example/weft:v1
    ctr -n k8s.io images import weft.tar

Usage: image [flags]
`

// options are what the command line says.
type options struct {
	output    string
	reference string
	version   string
	platforms []platform
	created   time.Time
}

// platform is what an image runs on.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// supported are the platforms that Weft's programs in the kernel are compiled for.
var supported = []platform{{"linux", "amd64"}, {"linux", "arm64"}}

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// parse reads the command line.
func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	platforms := f.String("platforms", "linux/amd64,linux/arm64", "`platforms` to build for, separated by commas; local: this one")
	f.StringVar(&o.output, "output", "weft-image.tar", "`file` to write")
	f.StringVar(&o.version, "version", "devel", "version of the program, as `weft version` prints it")
	f.StringVar(&o.reference, "reference", "", "`name` that the image gets when it is imported (default: ghcr.io/weft-mesh/weft:VERSION)")
	created := f.Int64("created", 0, "when the image was made, in `seconds` since 1970; a commit's time makes builds repeatable")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected %q", f.Arg(0))
	}
	o.created = time.Unix(*created, 0).UTC()
	if o.reference == "" {
		o.reference = "ghcr.io/weft-mesh/weft:" + tag(o.version)
	}
	for name := range strings.SplitSeq(*platforms, ",") {
		if name == "local" {
			name = "linux/" + runtime.GOARCH
		}
		p, err := parsePlatform(name)
		if err != nil {
			return o, err
		}
		o.platforms = append(o.platforms, p)
	}
	return o, nil
}

// parsePlatform reads a name such as linux/amd64.
func parsePlatform(name string) (platform, error) {
	var names []string
	for _, p := range supported {
		if p.String() == name {
			return p, nil
		}
		names = append(names, p.String())
	}
	return platform{}, fmt.Errorf("platform %q is not supported: use %s", name, strings.Join(names, " or "))
}

// tag is a version as an image's tag, which may hold letters, digits and _ . - alone.
func tag(version string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("_.-", r):
			return r
		}
		return '-'
	}, version)
	return strings.TrimLeft(out[:min(len(out), 128)], ".-")
}

func run(o options) error {
	work, err := os.MkdirTemp("", "weft-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var built []program
	for _, p := range o.platforms {
		fmt.Fprintf(os.Stderr, "building for %s\n", p)
		b, err := build(work, p, o.version)
		if err != nil {
			return err
		}
		built = append(built, b)
	}
	layout := filepath.Join(work, "layout")
	if err := write(layout, built, o); err != nil {
		return err
	}
	if err := archive(layout, o.output, o.created); err != nil {
		return err
	}
	info, err := os.Stat(o.output)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: %s, %s MiB\n", o.output, o.reference, strconv.FormatFloat(float64(info.Size())/(1<<20), 'f', 1, 64))
	return nil
}

// program is Weft, built for one platform.
type program struct {
	platform
	path string
}

// build builds the program without the lab.
func build(dir string, p platform, version string) (program, error) {
	out := filepath.Join(dir, p.arch, "weft")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "nolab", "-ldflags", "-s -w -X main.version="+version, "-o", out,
		"github.com/weft-mesh/weft/cmd/weft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.os, "GOARCH="+p.arch)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return program{}, fmt.Errorf("build for %s: %w", p, err)
	}
	return program{p, out}, nil
}

// archive writes the files of a folder as one file, in order of name.
func archive(dir, file string, at time.Time) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	w := tar.NewWriter(temp)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: at})
		}
		return addFile(w, path, tar.Header{Name: name, Mode: 0o644, ModTime: at})
	})
	if err != nil {
		return err
	}
	if err := errors.Join(w.Close(), temp.Chmod(0o644), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), file)
}

// addFile adds a file to an archive, under the name and mode of a header.
func addFile(w *tar.Writer, path string, h tar.Header) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}
