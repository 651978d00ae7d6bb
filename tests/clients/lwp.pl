#!/usr/bin/env perl
# Perl LWP: lwp.pl URL
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use LWP::UserAgent;

my $base  = shift;
my $agent = LWP::UserAgent->new(timeout => 30);
$agent->default_header(Authorization => $ENV{AUTH}) if defined $ENV{AUTH};

sub show {
    my ($call, $response) = @_;
    my $head = $response->headers->as_string =~ s/^Client-.*\n//mgr;    # LWP's own notes
    print "> $call\n", $response->status_line, "\n", $head, sha256_hex($response->content), "\n";
}

show("GET $_", $agent->get($base . $_)) for '/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large';
show('HEAD /json', $agent->head("$base/json"));
show('POST /items', $agent->post("$base/items", 'Content-Type' => 'application/json', Content => '{"name": "bolt"}'));
