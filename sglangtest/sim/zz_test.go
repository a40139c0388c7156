package sim
import ("testing";"fmt";"slices";"github.com/sglangtest/harness/sglangtest/internal/refdata";"time")
func TestZZ(t *testing.T){
 m,err:=ReadMeasurements(refdata.Path(t,"sglang-h100/calibration")); if err!=nil{t.Fatal(err)}
 m.Base,m.Handover=H100Llama8B(),time.Millisecond
 p,rep,err:=Calibrate(m); if err!=nil{t.Fatal(err)}
 fmt.Println(rep)
 for _,f:=range []string{"p050","p080"} {
  run,err:=ReadTrace(refdata.Path(t,"sglang-h100/traces/trace_"+f+".csv"),"",0); if err!=nil{t.Fatal(err)}
  all,err:=replay(p,run,pausesOf(run)...); if err!=nil{t.Fatal(err)}
  fmt.Println(f,pausesOf(run))
  type d struct{ x *replayed; e float64}
  var ds []d
  var ps []pause = pausesOf(run)
  for _,x:=range all { if x.Sent<ps[0].to+300*time.Millisecond && x.First>ps[0].from {continue}
    ds=append(ds,d{x,inMilliseconds(x.first-x.First)})}
  slices.SortFunc(ds,func(a,b d)int{ if a.e<b.e {return -1}; return 1})
  for i:=0;i<=10;i++ { fmt.Printf("%.1f ",ds[i*(len(ds)-1)/10].e)}; fmt.Println()
  // by measured TTFT decile
  slices.SortFunc(ds,func(a,b d)int{ return int((a.x.First-a.x.Sent)-(b.x.First-b.x.Sent))})
  n:=len(ds)
  for i:=0;i<10;i++ { g:=ds[i*n/10:(i+1)*n/10]; var me,si,pr,wq []float64; for _,x:=range g { me=append(me,inMilliseconds(x.x.First-x.x.Sent)); si=append(si,inMilliseconds(x.x.first-x.x.Sent)); pr=append(pr,float64(x.x.Prompt)); wq=append(wq,x.e)}
   fmt.Printf("decile %d measured %.1f sim %.1f prompt %.0f err %.1f\n",i,medianOf(me),medianOf(si),medianOf(pr),medianOf(wq))}
  slices.SortFunc(ds,func(a,b d)int{ return int(b.x.First-b.x.Sent)-int(a.x.First-a.x.Sent)})
  for _,x:=range ds[:30] { fmt.Printf("  %8.3f prompt %4d measured %.1f sim %.1f  recv %.1f\n",x.x.Sent.Seconds(),x.x.Prompt,inMilliseconds(x.x.First-x.x.Sent),inMilliseconds(x.x.first-x.x.Sent),inMilliseconds(x.x.Received-x.x.Sent))}
 }
}
