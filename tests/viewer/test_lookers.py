import threading

from ppo.viewer.lookers import BEAT, MOST_LOOKERS, Lookers


def lookers():
    return Lookers(lambda: None)


def test_a_page_that_reads_gets_everything_in_order():
    everyone = lookers()
    looker = everyone.add()
    for number in range(5):
        everyone.send(BEAT, f"beat {number}")
    everyone.send("state", "state")
    assert looker.take(0.0) == [("state", "state"), *((BEAT, f"beat {number}") for number in range(5))]
    assert looker.take(0.0) == []


def test_a_page_that_does_not_read_keeps_the_newest_messages_and_no_more():
    everyone = lookers()
    slow, quick = everyone.add(), everyone.add()
    got = []
    for number in range(1000):
        everyone.send(BEAT, f"beat {number}")
        everyone.send("state", f"state {number}")
        got += quick.take(0.0)
    assert [text for kind, text in got if kind == BEAT] == [f"beat {number}" for number in range(1000)]
    waiting = slow.take(0.0)
    assert len(waiting) < 20
    assert waiting[0] == ("state", "state 999") and waiting[-1] == (BEAT, "beat 999")


def test_one_page_too_many_replaces_the_one_that_came_first():
    everyone = lookers()
    pages = [everyone.add() for _ in range(MOST_LOOKERS + 2)]
    assert [page.is_replaced for page in pages] == [True, True] + [False] * MOST_LOOKERS
    assert len(everyone) == MOST_LOOKERS
    everyone.remove(pages[0])
    everyone.remove(pages[-1])
    assert len(everyone) == MOST_LOOKERS - 1


def test_a_page_that_is_replaced_while_it_waits_is_told_at_once():
    everyone = lookers()
    first = everyone.add()
    waiting = threading.Thread(target=first.take, args=(60.0,))
    waiting.start()
    for _ in range(MOST_LOOKERS):
        everyone.add()
    waiting.join(10.0)
    assert not waiting.is_alive()


def test_whoever_plays_hears_of_every_page_that_comes():
    heard = []
    everyone = Lookers(lambda: heard.append(len(everyone)))
    everyone.add()
    everyone.add()
    assert heard == [1, 2]
