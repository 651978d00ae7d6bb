# A sync with Arena as people write it: LWP, no retries. BASE_URL RUN, the password in PASSWORD.
use strict;
use warnings;
use Digest::SHA qw(sha256);
use HTTP::Request::Common qw(POST);
use JSON::PP;
use LWP::UserAgent;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120);
my (@failures, $calls);

sub call {
    my ($method, $path, $expected, $data) = @_;
    my $request = HTTP::Request->new($method, $base . $path);
    if (defined $data) {
        $request->header('Content-Type' => 'application/json');
        $request->content(encode_json($data));
    }
    return sent($request, $expected);
}

sub sent {
    my ($request, $expected) = @_;
    $calls++;
    my $answer = $agent->request($request);
    push @failures, $request->method . ' ' . $request->uri . ': ' . $answer->code unless $answer->code == $expected;
    return $answer;
}

my $given = { email => 'script@plant.example', password => $ENV{PASSWORD}, workspaceId => 7 };
my $told = call('POST', '/login', 200, $given);
my $session;
if ($told->is_success) {
    $session = decode_json($told->content)->{arenaSessionId};
    $agent->default_header(':arena_session_id' => $session);
    for my $page (0 .. 3) {
        my $found = decode_json(call('GET', "/items?offset=" . 20 * $page . "&limit=20", 200)->content);
        push @failures, 'a page is empty' unless @{ $found->{results} || [] };
    }
    call('POST', '/items', 201, { number => "$run-$_", name => 'Bolt' }) for 0 .. 11;
    my $content = sha256($run) x 4096;
    my $form = [ content => [ undef, 'drawing.bin', Content => $content ] ];
    my $guid = sent(POST("$base/files", Content_Type => 'form-data', Content => $form), 201)->header('X-Arena-FileGuid');
    push @failures, 'the file came back as another one' unless call('GET', "/files/$guid/content", 200)->content eq $content;
    my $refused = decode_json(call('PUT', '/items/X/lifecycle', 400, {})->content);
    push @failures, 'the business error is another one' unless $refused->{errors}[0]{code} == 4001;
    call('PUT', '/logout', 200);
}
print encode_json({ calls => $calls, failures => \@failures, session => $session }), "\n";
exit(@failures ? 1 : 0);
