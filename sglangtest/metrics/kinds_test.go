package metrics

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// kindsOf returns the constants of events.go that are kinds, by name.
func kindsOf(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "events.go", nil, 0)
	require.NoError(t, err)
	kinds := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Kind") {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			kinds[spec.Names[0].Name] = value
		}
		return true
	})
	require.Greater(t, len(kinds), 10)
	return kinds
}

// The run folder's documentation names each kind of event, and what its data hold.
func TestEachKindIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../results/doc.go")
	require.NoError(t, err)
	for _, kind := range kindsOf(t) {
		require.True(t, strings.Contains(string(doc), "\n//\t"+kind+" "), "results/doc.go does not say what %s is, nor what its data hold", kind)
	}
}

// Code of this module puts no events into a time line but of the kinds in events.go.
func TestOnlyKnownKindsAreUsed(t *testing.T) {
	kinds := kindsOf(t)
	seen := map[string]bool{}
	set := token.NewFileSet()
	packages := map[string][]*ast.File{} // by folder
	require.NoError(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || path == "../../sglangtest/results/decode.go" { // it reads what was stored
			return err
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return err
	}))
	for dir, files := range packages {
		own := dir == "../../sglangtest/metrics"
		// named returns the name in pkg.name or, here, in name.
		named := func(e ast.Expr, name *string) bool {
			switch e := e.(type) {
			case *ast.SelectorExpr:
				pkg, ok := e.X.(*ast.Ident)
				*name = e.Sel.Name
				return ok && pkg.Name == "metrics"
			case *ast.Ident:
				*name = e.Name
				return own
			}
			return false
		}
		var check func(e ast.Expr, in *ast.FuncDecl)
		checked := map[string]bool{} // functions whose parameter is a kind
		check = func(e ast.Expr, in *ast.FuncDecl) {
			var name string
			if named(e, &name) && kinds[name] != "" {
				seen[name] = true
				return
			}
			variable, ok := e.(*ast.Ident)
			require.True(t, ok && in != nil, "%s: the kind of an event is not one of metrics/events.go", set.Position(e.Pos()))
			position, found := 0, false
			for _, field := range in.Type.Params.List {
				for _, p := range field.Names {
					if p.Name == variable.Name {
						found = true
						break
					}
					if !found {
						position++
					}
				}
			}
			if found && checked[in.Name.Name] {
				return
			}
			if found {
				checked[in.Name.Name] = true
				calls := 0
				for _, f := range files {
					for _, d := range f.Decls {
						within, _ := d.(*ast.FuncDecl)
						ast.Inspect(d, func(n ast.Node) bool {
							call, ok := n.(*ast.CallExpr)
							if !ok {
								return true
							}
							if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == in.Name.Name && len(call.Args) > position {
								calls++
								check(call.Args[position], within)
							}
							return true
						})
					}
				}
				require.NotZero(t, calls, "%s: nobody calls it", set.Position(in.Pos()))
				return
			}
			values := 0
			ast.Inspect(in, func(n ast.Node) bool {
				if a, ok := n.(*ast.AssignStmt); ok && len(a.Lhs) == 1 {
					if left, ok := a.Lhs[0].(*ast.Ident); ok && left.Name == variable.Name {
						values++
						check(a.Rhs[0], nil)
					}
				}
				return true
			})
			require.NotZero(t, values, "%s: what is this kind?", set.Position(e.Pos()))
		}
		for _, f := range files {
			for _, d := range f.Decls {
				within, _ := d.(*ast.FuncDecl)
				ast.Inspect(d, func(n ast.Node) bool {
					lit, ok := n.(*ast.CompositeLit)
					var name string
					if !ok || !named(lit.Type, &name) || name != "Event" {
						return true
					}
					for _, el := range lit.Elts {
						if kv, ok := el.(*ast.KeyValueExpr); ok && kv.Key.(*ast.Ident).Name == "Kind" {
							check(kv.Value, within)
						}
					}
					return true
				})
			}
		}
	}
	for name := range kinds {
		require.True(t, seen[name], "nothing makes an event of %s", name)
	}
}
