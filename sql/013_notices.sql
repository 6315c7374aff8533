-- A NOTIFY makes the commits of a whole database take turns: the order of notices is held under one lock, through the
-- flush to disk. The dispatchers tell each other after the commit instead, of many messages at once.
drop trigger announce on dispatcher.messages;
drop function dispatcher.announce();
