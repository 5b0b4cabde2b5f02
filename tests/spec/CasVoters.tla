----------------------------- MODULE CasVoters -----------------------------
(***************************************************************************)
(* P-40 (protocol, section 2): a metadata voter loses its disk, comes       *)
(* back empty as a new incarnation and is re-admitted by a numbered         *)
(* configuration.  One register (a key) as in CasRegister;                  *)
(* keys share nothing but the configuration, so one key is enough: the scan *)
(* either lists it or does not.                                             *)
(*                                                                          *)
(* A configuration names each voter with its incarnation.  Number n + 1 is  *)
(* decided by Paxos among the voters of n that are in n; whoever learns the *)
(* decision may tell any voter (Adopt), list keys, run the rescan, and tell *)
(* the replacement that it is done.  All these are separate steps of no     *)
(* particular broker: any number of brokers may do them at once, and crash  *)
(* between any two.  Messages are sets that only grow.                      *)
(*                                                                          *)
(* A voter may be lost while all others are intact (in Loss); the same one  *)
(* may be lost again at any moment of its re-admission.                     *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS Acceptor, Change, MaxBal, MaxNum, MaxLoss, Reads,
          CfgBal,   \* ballots of each decision of a configuration; 0: the decision is one step
          Fixed,    \* what the ballots attempt: "any", or these in this order
          Mut

M(m) == m \in Mut
Bal == 1..MaxBal
Quorum == {Q \in SUBSET Acceptor : 2 * Cardinality(Q) > Cardinality(Acceptor)}
Range(s) == {s[i] : i \in 1..Len(s)}
IsPrefix(s, t) == Len(s) <= Len(t) /\ SubSeq(t, 1, Len(s)) = s

VARIABLES
  inc,      \* present incarnation of each voter
  cfg,      \* number of the configuration that it is in, durable; 0: a new incarnation, in none
  ready,    \* it answers prepares, durable
  prom, abal, aval,      \* the register at each acceptor, durable (P-3)
  op, cf, active,        \* of ballot b: what it attempts, under which number; the present attempt of each change
  pm, prop, acc, fl,     \* promises, proposals, acceptances, and what was returnable when b began
  dec,      \* dec[n]: the contents decided for number n
  cprom, cacc, cpm, cprop, cok,  \* Paxos for number n: promise, accepted, promise messages, proposals, acceptances
  lst,      \* answers to "list your keys": <<number, voter, it lists the key>>
  rd        \* a quorum reader (P-4, without its clause about promises), and what it returned

reg == <<prom, abal, aval, op, cf, active, pm, prop, acc, fl>>
con == <<dec, cprom, cacc, cpm, cprop, cok>>
vars == <<inc, cfg, ready, reg, con, lst, rd>>

None == <<"-">>
NoC == [a \in Acceptor |-> 0]
One == [a \in Acceptor |-> 1]
Num == 2..MaxNum
AccOf(b) == {m[2] : m \in {x \in acc : x[1] = b}}
\* an acceptance is of the incarnation that the number of b names: no other answers (Adopt, Accept)
Chosen == {b \in Bal : prop[b] # None /\ AccOf(b) \in Quorum}
Out == {prop[b] : b \in Chosen} \cup rd.ret \cup {<<>>}
Best == CHOOSE v \in Out : \A w \in Out : Len(w) <= Len(v)

Init ==
  /\ inc = One /\ cfg = One /\ ready = [a \in Acceptor |-> TRUE]
  /\ prom = [a \in Acceptor |-> 0] /\ abal = prom /\ aval = [a \in Acceptor |-> <<>>]
  /\ op = [b \in Bal |-> "none"] /\ cf = [b \in Bal |-> 0] /\ active = [c \in Change |-> 0]
  /\ pm = {} /\ prop = [b \in Bal |-> None] /\ acc = {} /\ fl = [b \in Bal |-> <<>>]
  /\ dec = [n \in 1..MaxNum |-> IF n = 1 THEN {One} ELSE {}]
  /\ cprom = [n \in Num |-> NoC] /\ cacc = [n \in Num |-> [a \in Acceptor |-> <<0, NoC>>]]
  /\ cpm = {} /\ cprop = [n \in Num |-> [c \in 1..CfgBal |-> NoC]] /\ cok = {}
  /\ lst = {} /\ rd = [n |-> 0, on |-> FALSE, floor |-> <<>>, ans |-> {}, ret |-> {}]

-----------------------------------------------------------------------------
\* The register.  An acceptor in no configuration answers nothing.
Answers(a, b) == cfg[a] # 0 /\ (M("NoNumber") \/ cf[b] = cfg[a])

Promise(a, b, o) ==
  /\ prom[a] < b /\ cfg[a] # 0
  /\ CASE Fixed = "c1,id" -> o = <<"c1", "id">>[b]
       [] Fixed = "id,c1,c2" -> o = <<"id", "c1", "c2">>[b]
       [] Fixed = "c1,id,c2" -> o = <<"c1", "id", "c2">>[b]
       [] OTHER -> TRUE
  /\ ready[a] \/ (M("RescanWithIt") /\ o = "id")
  /\ IF op[b] = "none"
     THEN /\ op' = [op EXCEPT ![b] = o]
          /\ cf' = [cf EXCEPT ![b] = cfg[a]]
          /\ fl' = [fl EXCEPT ![b] = Best]
          /\ active' = IF o \in Change THEN [active EXCEPT ![o] = b] ELSE active
     ELSE op[b] = o /\ Answers(a, b) /\ UNCHANGED <<op, cf, fl, active>>
  /\ prom' = [prom EXCEPT ![a] = b]
  /\ pm' = pm \cup {<<b, a, abal[a], aval[a]>>}
  /\ UNCHANGED <<inc, cfg, ready, abal, aval, prop, acc, con, lst, rd>>

F(o, v) == IF o = "id" \/ o \in Range(v) THEN v ELSE Append(v, o)

Propose(b) ==
  /\ op[b] # "none" /\ prop[b] = None
  /\ op[b] \in Change => active[op[b]] = b
  /\ \E Q \in Quorum :
       LET P == {m \in pm : m[1] = b /\ m[2] \in Q} IN
       /\ {m[2] : m \in P} = Q
       /\ LET top == CHOOSE m \in P : \A k \in P : k[3] <= m[3]
          IN  prop' = [prop EXCEPT ![b] = F(op[b], top[4])]
  /\ UNCHANGED <<inc, cfg, ready, prom, abal, aval, op, cf, active, pm, acc, fl, con, lst, rd>>

\* a replacement accepts as soon as it is in the configuration, before it answers prepares
Accept(a, b) ==
  /\ prop[b] # None /\ Answers(a, b)
  /\ prom[a] <= b /\ abal[a] < b
  /\ prom' = [prom EXCEPT ![a] = b]
  /\ abal' = [abal EXCEPT ![a] = b]
  /\ aval' = [aval EXCEPT ![a] = prop[b]]
  /\ acc' = acc \cup {<<b, a>>}
  /\ UNCHANGED <<inc, cfg, ready, op, cf, active, pm, prop, fl, con, lst, rd>>

ReadBegin ==
  /\ ~rd.on /\ rd.n < Reads /\ Chosen # {}
  /\ rd' = [rd EXCEPT !.n = @ + 1, !.on = TRUE, !.floor = Best]
  /\ UNCHANGED <<inc, cfg, ready, reg, con, lst>>
ReadAsk(a) ==
  /\ rd.on /\ a \notin {x[1] : x \in rd.ans} /\ cfg[a] # 0
  /\ ready[a] \/ M("ReadAtOnce")
  /\ M("ReadNoNumber") \/ \A x \in rd.ans : x[2] = cfg[a]
  /\ rd' = [rd EXCEPT !.ans = @ \cup {<<a, cfg[a], abal[a], aval[a]>>}]
  /\ UNCHANGED <<inc, cfg, ready, reg, con, lst>>
ReadEnd ==
  /\ rd.on
  /\ \E x, y \in rd.ans : x[1] # y[1] /\ x[3] = y[3] /\ rd' = [rd EXCEPT !.on = FALSE, !.ans = {}, !.ret = {x[4]}]
  /\ UNCHANGED <<inc, cfg, ready, reg, con, lst>>

-----------------------------------------------------------------------------
\* Loss of everything that a has.  Two voters lost of three are an operator's matter: the others are intact.
RECURSIVE Sum(_)
Sum(S) == IF S = {} THEN 0 ELSE LET a == CHOOSE x \in S : TRUE IN inc[a] + Sum(S \ {a})
Losses == Sum(Acceptor) - Cardinality(Acceptor)
Loss(a) ==
  /\ Losses < MaxLoss
  /\ \A x \in Acceptor \ {a} : ready[x]
  /\ inc' = [inc EXCEPT ![a] = @ + 1]
  /\ cfg' = [cfg EXCEPT ![a] = 0] /\ ready' = [ready EXCEPT ![a] = FALSE]
  /\ prom' = [prom EXCEPT ![a] = 0] /\ abal' = [abal EXCEPT ![a] = 0] /\ aval' = [aval EXCEPT ![a] = <<>>]
  /\ cprom' = [n \in Num |-> [cprom[n] EXCEPT ![a] = 0]]
  /\ cacc' = [n \in Num |-> [cacc[n] EXCEPT ![a] = <<0, NoC>>]]
  /\ UNCHANGED <<op, cf, active, pm, prop, acc, fl, dec, cpm, cprop, cok, lst, rd>>

\* Contents that a broker may propose for n: those of n - 1 with one voter's incarnation replaced by one that the broker
\* has heard of, which need not be the present one any more.
Fresh(n) == {[d EXCEPT ![a] = i] : d \in dec[n-1], a \in Acceptor, i \in 2..(MaxLoss + 1)}
May(n) == {d \in Fresh(n) : \E e \in dec[n-1], a \in Acceptor : e[a] < d[a] /\ d[a] <= inc[a] /\ \A x \in Acceptor \ {a} : d[x] = e[x]}

Votes(a, n) == cfg[a] = n - 1 /\ ready[a]
DecideAtOnce(n) ==
  /\ CfgBal = 0 /\ dec[n] = {}
  /\ {a \in Acceptor : Votes(a, n)} \in Quorum
  /\ \E d \in May(n) : dec' = [dec EXCEPT ![n] = {d}]
  /\ UNCHANGED <<inc, cfg, ready, reg, cprom, cacc, cpm, cprop, cok, lst, rd>>
CPromise(a, n, c) ==
  /\ Votes(a, n) /\ May(n) # {} /\ cprom[n][a] < c
  /\ cprom' = [cprom EXCEPT ![n][a] = c]
  /\ cpm' = cpm \cup {<<n, c, a, cacc[n][a]>>}
  /\ UNCHANGED <<inc, cfg, ready, reg, dec, cacc, cprop, cok, lst, rd>>
CPropose(n, c) ==
  /\ cprop[n][c] = NoC
  /\ \E Q \in Quorum :
       LET P == {m \in cpm : m[1] = n /\ m[2] = c /\ m[3] \in Q} IN
       /\ {m[3] : m \in P} = Q
       /\ LET top == CHOOSE m \in P : \A k \in P : k[4][1] <= m[4][1] IN
          \E d \in IF top[4][1] > 0 THEN {top[4][2]} ELSE May(n) : cprop' = [cprop EXCEPT ![n][c] = d]
  /\ UNCHANGED <<inc, cfg, ready, reg, dec, cprom, cacc, cpm, cok, lst, rd>>
CAccept(a, n, c) ==
  /\ cprop[n][c] # NoC /\ cfg[a] = n - 1 /\ cprom[n][a] <= c /\ cacc[n][a][1] < c
  /\ cprom' = [cprom EXCEPT ![n][a] = c]
  /\ cacc' = [cacc EXCEPT ![n][a] = <<c, cprop[n][c]>>]
  /\ cok' = cok \cup {<<n, c, a>>}
  /\ dec' = IF {m[3] : m \in {x \in cok' : x[1] = n /\ x[2] = c}} \in Quorum
            THEN [dec EXCEPT ![n] = @ \cup {cprop[n][c]}] ELSE dec
  /\ UNCHANGED <<inc, cfg, ready, reg, cpm, cprop, lst, rd>>
\* mutant: each broker announces its own n + 1
Announce(n) ==
  /\ M("NoDecision") /\ \E d \in May(n) : dec' = [dec EXCEPT ![n] = @ \cup {d}]
  /\ UNCHANGED <<inc, cfg, ready, reg, cprom, cacc, cpm, cprop, cok, lst, rd>>

\* A voter is told a decided configuration that names its present incarnation, and makes it durable.
Adopt(a, n) ==
  /\ cfg[a] < n /\ \E d \in dec[n] : d[a] = inc[a]
  /\ cfg' = [cfg EXCEPT ![a] = n]
  /\ ready' = IF M("AtOnce") THEN [ready EXCEPT ![a] = TRUE] ELSE ready
  /\ UNCHANGED <<inc, reg, con, lst, rd>>
\* mutant: the adoption was not durable
Forget(a) ==
  /\ M("VolatileNumber") /\ ready[a] /\ cfg[a] > 1 /\ inc[a] = 1
  /\ cfg' = [cfg EXCEPT ![a] = @ - 1]
  /\ UNCHANGED <<inc, ready, reg, con, lst, rd>>

Stay(n) == {a \in Acceptor : \E d \in dec[n], e \in dec[n-1] : d[a] = e[a]}
\* A survivor of n that is in n lists its keys: those with an accepted value (KeysPromised: or a promise).
Lists(a, n) ==
  /\ dec[n] # {} /\ a \in Stay(n)
  /\ cfg[a] = n \/ M("ListEarly")
  /\ lst' = lst \cup {<<n, a, IF M("KeysPromised") THEN prom[a] > 0 ELSE abal[a] > 0>>}
  /\ lst' # lst
  /\ UNCHANGED <<inc, cfg, ready, reg, con, rd>>
\* The scan of n is done: all survivors listed their keys in n and none listed this one, or an attempt of number n at it
\* was chosen (its prepare had the survivors alone, since the replacement answers none), and the replacement accepted it.
NotListed(n) == LET S == {a \in Stay(n) : <<n, a, FALSE>> \in lst}
                IN  IF M("OneList") THEN S # {} ELSE S = Stay(n)
Done(a, n) == NotListed(n) \/ \E b \in Chosen : cf[b] = n /\ (<<b, a>> \in acc \/ M("ReadyWithoutIt"))
Ready(a) ==
  /\ ~ready[a] /\ cfg[a] # 0
  /\ Done(a, cfg[a]) \/ (M("ReadyUnnamed") /\ \E n \in 2..cfg[a] : Done(a, n))
  /\ ready' = [ready EXCEPT ![a] = TRUE]
  /\ UNCHANGED <<inc, cfg, reg, con, lst, rd>>

Next ==
  \/ \E b \in Bal : Propose(b)
  \/ \E a \in Acceptor, b \in Bal : Accept(a, b) \/ \E o \in Change \cup {"id"} : Promise(a, b, o)
  \/ \E a \in Acceptor : Loss(a) \/ Ready(a) \/ Forget(a)
  \/ ReadBegin \/ ReadEnd \/ \E a \in Acceptor : ReadAsk(a)
  \/ \E n \in Num : \/ DecideAtOnce(n) \/ Announce(n)
                    \/ \E a \in Acceptor : Adopt(a, n) \/ Lists(a, n)
                    \/ \E c \in 1..CfgBal : CPropose(n, c) \/ \E a \in Acceptor : CPromise(a, n, c) \/ CAccept(a, n, c)

Spec == Init /\ [][Next]_vars
Symm == Permutations(Acceptor)

-----------------------------------------------------------------------------
\* all values that operations return, under whatever number, are prefixes of one history
Agreement == \A v, w \in Out : IsPrefix(v, w) \/ IsPrefix(w, v)
\* what an operation returns contains all that could have been returned when it began: nothing chosen is forgotten
Linear == /\ \A b \in Chosen : IsPrefix(fl[b], prop[b])
          /\ \A v \in rd.ret : IsPrefix(rd.floor, v)
Once == \A v \in Out : Cardinality(Range(v)) = Len(v)
Applied == \A b \in Chosen : op[b] \in Change => op[b] \in Range(prop[b])
\* at most one content per number; and no lost incarnation comes back
OneContent == \A n \in 1..MaxNum : Cardinality(dec[n]) <= 1
InIt == \A a \in Acceptor : cfg[a] # 0 => \E d \in dec[cfg[a]] : d[a] = inc[a]
=============================================================================
