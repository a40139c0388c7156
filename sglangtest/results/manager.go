package results

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// A ResultManager keeps run folders side by side in one root folder. It is immutable and safe for concurrent
// use, by several processes too.
type ResultManager struct {
	root string
	opts []Option
}

// NewResultManager returns the manager of the folder root, which it makes, if need be with its parents. The
// options hold for every run that it creates. A folder that can only be read will do for Open and List.
func NewResultManager(root string, opts ...Option) (*ResultManager, error) {
	if root == "" {
		return nil, errors.New("results: the root folder needs a name")
	}
	if _, err := newOptions(opts); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("results: cannot make the root folder: %w", err)
	}
	return &ResultManager{root: root, opts: opts}, nil
}

// Root returns the root folder.
func (m *ResultManager) Root() string { return m.root }

// Create starts a run in the folder name below the root, as [Create] does. A name is one path element.
func (m *ResultManager) Create(name string, meta Meta) (*Writer, error) {
	dir, err := m.dir(name)
	if err != nil {
		return nil, err
	}
	return Create(dir, meta, m.opts...)
}

// Open reads the run of that name, as [Open] does.
func (m *ResultManager) Open(name string) (*Run, error) {
	dir, err := m.dir(name)
	if err != nil {
		return nil, err
	}
	return Open(dir)
}

func (m *ResultManager) dir(name string) (string, error) {
	if !filepath.IsLocal(name) || filepath.Base(name) != name || name == "." {
		return "", fmt.Errorf("results: %q is no name for a run: want a single folder name, without separators", name)
	}
	return filepath.Join(m.root, name), nil
}

// An Entry is one run of a [ResultManager].
type Entry struct {
	Name string
	Run  *Run  // its state, start, label and the rest; nil if Err is not
	Err  error // why it cannot be read
}

// List returns the runs below the root in order of creation, those that cannot be read last. Folders that
// hold no run are left out, and so are folders inside runs.
func (m *ResultManager) List() ([]Entry, error) {
	folders, err := os.ReadDir(m.root)
	if err != nil {
		return nil, fmt.Errorf("results: listing runs: %w", err)
	}
	var entries []Entry
	for _, f := range folders {
		if _, err := os.Stat(filepath.Join(m.root, f.Name(), runFile)); err != nil {
			if errors.Is(err, fs.ErrNotExist) || !f.IsDir() {
				continue
			}
			entries = append(entries, Entry{Name: f.Name(), Err: fmt.Errorf("results: listing runs: %w", err)})
			continue
		}
		run, err := m.Open(f.Name())
		entries = append(entries, Entry{Name: f.Name(), Run: run, Err: err})
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		if a.Run == nil || b.Run == nil {
			return cmp.Compare(btoi(a.Run == nil), btoi(b.Run == nil))
		}
		return a.Run.Created.Compare(b.Run.Created)
	})
	return entries, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
